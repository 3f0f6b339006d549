/**
 * A POST by XMLHttpRequest, which alone tells how much of a body has gone out; by `fetch` where there is none, as in a
 * service worker.
 *
 * @param onUpload called with the bytes that have gone out, and with all there are
 * @returns the response, with its whole body
 */
export function post(url, { headers, body, credentials, signal, onUpload }) {
  if (!globalThis.XMLHttpRequest) return fetch(url, { method: "POST", headers, body, credentials, signal }).then(whole);
  const request = new XMLHttpRequest();
  const giveUp = () => request.abort();
  return new Promise((resolve, reject) => {
    if (signal.aborted) throw signal.reason;
    signal.addEventListener("abort", giveUp);
    request.onload = () => resolve(responseOf(request));
    request.onerror = () => reject(new TypeError("the request was not answered"));
    request.onabort = () => reject(signal.reason);
    for (const type of ["progress", "load"]) {
      request.upload.addEventListener(type, ({ loaded, total }) => onUpload(loaded, total));
    }
    request.open("POST", url);
    request.withCredentials = credentials === "include";
    for (const [name, value] of headers) request.setRequestHeader(name, value);
    request.send(body);
  }).finally(() => signal.removeEventListener("abort", giveUp));
}

const whole = async (response) => withAddress(new Response((await response.text()) || null, response), response.url);

function responseOf(request) {
  const { status, statusText } = request;
  const lines = request.getAllResponseHeaders().split("\r\n").filter(Boolean);
  const headers = lines.map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).trim()]);
  return withAddress(new Response(request.responseText || null, { status, statusText, headers }), request.responseURL);
}

/** A response that was put together has no address, which relative ones in it refer to. */
const withAddress = (response, url) => Object.defineProperty(response, "url", { value: url });
