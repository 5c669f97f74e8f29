// A second reader of C2PA, with no code in common with the one that signs. It prints one JSON line per file:
// {"valid": bool, "codes": [failure codes], "error": text or null}. It does not follow the certificate chain.
// path@offset is the file with one bit of that byte flipped.
import { readFile } from 'node:fs/promises';
import { BMFF, JPEG, PNG } from '@trustnxt/c2pa-ts/asset';
import { SuperBox } from '@trustnxt/c2pa-ts/jumbf';
import { ManifestStore } from '@trustnxt/c2pa-ts/manifest';

// The library has no WebP: RIFF chunks, the manifest store in the one called "C2PA" (C2PA 2.2, A.3.5).
class WebP {
  mimeType = 'image/webp';
  constructor(data) {
    this.data = data;
    const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
    for (let at = 12; at + 8 <= data.length; ) {
      const size = view.getUint32(at + 4, true);
      if (Buffer.from(data.subarray(at, at + 4)).toString('latin1') === 'C2PA') this.found = { start: at, length: size + 8 };
      at += 8 + size + (size & 1);
    }
  }
  static canRead = data => Buffer.from(data.subarray(8, 12)).toString('latin1') === 'WEBP';
  getDataLength = () => this.data.length;
  getDataRange = async (start = 0, length = this.data.length - start) => this.data.subarray(start, start + length);
  getHashExclusionRange = () => this.found;
  getManifestJUMBF = () => this.found && this.data.subarray(this.found.start + 8, this.found.start + this.found.length);
}

async function verdict(asked) {
  try {
    const [path, offset] = asked.split('@');
    const data = new Uint8Array(await readFile(path));
    if (offset !== undefined) data[Number(offset)] ^= 0x10;
    const Asset = [JPEG, PNG, BMFF, WebP].find(kind => kind.canRead(data));
    const asset = new Asset(data);
    const result = await ManifestStore.read(SuperBox.fromBuffer(asset.getManifestJUMBF())).validate(asset);
    const codes = result.statusEntries.filter(entry => !entry.success).map(entry => entry.code);
    return { valid: result.isValid, codes, error: null };
  } catch (error) {
    return { valid: false, codes: [], error: String(error) };
  }
}

for (const path of process.argv.slice(2)) console.log(JSON.stringify(await verdict(path)));
