/** One click, one run: the idempotency keys of what is open on this page. */

const open = new Map(); // what is asked: {key, claims} while it is open

/**
 * A claim to the key under which something is asked, until its `release()`. What is open already is asked under the
 * same key.
 *
 * @param question a text that is the same for the same question
 * @param given the key, where the caller has one
 */
export function claim(question, given) {
  const known = open.get(question);
  const key = given ?? known?.key ?? randomKey();
  const entry = known?.key === key ? known : { key, claims: new Set() };
  const claim = { key, release };
  function release() {
    entry.claims.delete(claim);
    if (!entry.claims.size && open.get(question) === entry) open.delete(question);
  }
  entry.claims.add(claim);
  if (!known) open.set(question, entry);
  return claim;
}

/** 128 random bits. `randomUUID` is missing on pages that did not come by HTTPS. */
function randomKey() {
  if (globalThis.crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
