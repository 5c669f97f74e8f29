"""The one call of KMS that we use, over real HTTP, for what moto leaves out: digests, RSA with its salt, and faults."""

import base64
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

_HASHES = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}


class FakeKms:
    """Signs with `key`; `fault` is an error code to answer with, or "hang" or "drop"."""

    def __init__(self, key):
        self.key = key
        self.fault = None
        self.asked = []
        self.url = ""

    def answer(self, question):
        self.asked.append(question)
        message = base64.b64decode(question["Message"])
        assert question["MessageType"] == ("RAW" if len(message) > 64 else "DIGEST") and len(message) <= 4096
        digest = _HASHES[question["SigningAlgorithm"][-3:]]
        digest = digest if question["MessageType"] == "RAW" else Prehashed(digest)
        if isinstance(self.key, rsa.RSAPrivateKey):
            assert question["SigningAlgorithm"].startswith("RSASSA_PSS")
            pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)
            signature = self.key.sign(message, pss, digest)
        else:
            signature = self.key.sign(message, ec.ECDSA(digest))
        return {"KeyId": question["KeyId"], "Signature": base64.b64encode(signature).decode()}


@contextmanager
def serving(key):
    kms = FakeKms(key)

    class Handler(BaseHTTPRequestHandler):
        # Headers and body are sent apart: otherwise each answer waits 40 ms for the client's acknowledgement.
        disable_nagle_algorithm = True

        def do_POST(self):
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.headers["X-Amz-Target"] == "TrentService.Sign"
            if kms.fault == "hang":
                time.sleep(0.6)
            if kms.fault in ("hang", "drop"):
                self.close_connection = True
                return
            status = 500 if kms.fault == "KMSInternalException" else 400 if kms.fault else 200
            body = {"__type": kms.fault, "message": "no"} if kms.fault else kms.answer(question)
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kms.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield kms
    finally:
        server.shutdown()
        server.server_close()
