/** The binary frames of a call, as the protocol `llmstream.voice.v1` has them. Their integers are little-endian. */

import { ProtocolError } from "./errors.js";

/** Bytes before the samples of a frame that goes up. */
export const HEADER = 8;

const DOWN = 12;
const LAST = 1;

/**
 * Write the header into the room before a frame's samples.
 *
 * @param frame ArrayBuffer
 * @param captured milliseconds on this machine's clock
 */
export function stamped(frame, sequence, captured) {
  const header = new DataView(frame);
  header.setUint32(0, sequence, true);
  header.setUint32(4, captured, true);
  return frame;
}

/**
 * What a frame that came down says.
 *
 * @returns `sequence`; `generation`; `last`, whether it is the last of its answer; `offset`, how many samples of the
 *   generation come before; and `samples`
 */
export function parsePacket(buffer) {
  if (buffer.byteLength < DOWN || buffer.byteLength % 2) {
    throw new ProtocolError(`The server sent an audio frame of ${buffer.byteLength} bytes.`);
  }
  const header = new DataView(buffer);
  return {
    sequence: header.getUint32(0, true),
    generation: header.getUint16(4, true),
    last: (header.getUint16(6, true) & LAST) !== 0,
    offset: header.getUint32(8, true),
    samples: new Int16Array(buffer, DOWN),
  };
}
