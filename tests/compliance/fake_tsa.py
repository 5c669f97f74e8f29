"""A real time-stamp authority (RFC 3161): `openssl ts` with a certificate of its own, behind HTTP; and bad ones."""

import datetime as dt
import subprocess
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.compliance.samples import _USAGES, private_pem

_CONFIG = """
[tsa]
default_tsa = own
[own]
serial = {folder}/serial
signer_cert = {folder}/tsa.pem
signer_key = {folder}/tsa.key
certs = {folder}/root.pem
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha384, sha512
ess_cert_id_alg = sha256
"""


class FakeTsa:
    """Answers well; or, as `fault` says, "hang", "drip", "rubbish", "denied", "nonce" or "imprint"."""

    def __init__(self, folder):
        self.folder = folder
        self.fault = None
        self.asked = 0
        self.url = ""
        self.over = threading.Event()
        self._earlier = None
        folder.mkdir()
        root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        self.root_pem = _certificate("TSA root", root_key, "TSA root", root_key, ca=True)
        (folder / "root.pem").write_bytes(self.root_pem)
        (folder / "tsa.pem").write_bytes(_certificate("TSA", key, "TSA root", root_key, ca=False))
        (folder / "tsa.key").write_bytes(private_pem(key))
        (folder / "serial").write_text("01\n")
        (folder / "openssl.cnf").write_text(_CONFIG.format(folder=folder))

    def answer(self, question):
        self.asked += 1
        if self.fault == "rubbish":
            return b"no stamp at all"
        if self.fault == "denied":
            # PKIStatusInfo "rejection", and no token.
            return bytes.fromhex("30053003020102")
        stamp = self._stamp(self._earlier if self.fault == "imprint" else question)
        self._earlier = self._earlier or question
        if self.fault == "nonce":
            # A question with another nonce about the same bytes: INTEGER of 8 bytes or so, before certReq.
            at = question.rindex(b"\x01\x01\xff")
            return self._stamp(question[: at - 1] + bytes([question[at - 1] ^ 1]) + question[at:])
        return stamp

    def _stamp(self, question):
        (self.folder / "question").write_bytes(question)
        command = ["openssl", "ts", "-reply", "-config", "openssl.cnf", "-section", "own", "-queryfile", "question"]
        done = subprocess.run([*command, "-out", "answer"], cwd=self.folder, check=True, capture_output=True)
        assert not done.returncode
        return (self.folder / "answer").read_bytes()


@contextmanager
def serving(folder):
    """The authority, listening on the loopback."""
    tsa = FakeTsa(folder)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        # Headers and body are sent apart: otherwise each answer waits 40 ms for the client's acknowledgement.
        disable_nagle_algorithm = True

        def do_POST(self):
            assert self.headers["Content-Type"] == "application/timestamp-query"
            question = self.rfile.read(int(self.headers["Content-Length"]))
            if tsa.fault == "hang":
                tsa.asked += 1
                tsa.over.wait(60)
                return
            with lock:
                answer = tsa.answer(question)
            self.send_response(200)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            if tsa.fault == "drip":
                for byte in answer:
                    if tsa.over.wait(0.05):
                        return
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                return
            self.wfile.write(answer)

        def log_message(self, *args):
            pass

        def handle(self):
            try:
                super().handle()
            except OSError:
                pass  # who asked has gone

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    tsa.url = f"http://127.0.0.1:{server.server_port}/tsa"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield tsa
    finally:
        tsa.over.set()
        server.shutdown()
        server.server_close()


def _certificate(name, key, issuer, issuer_key, *, ca):
    now = dt.datetime.now(dt.UTC)
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Example {each}")]) for each in (name, issuer)]
    usage = dict.fromkeys(_USAGES, False) | {"key_cert_sign": ca, "crl_sign": ca, "digital_signature": not ca}
    builder = (
        x509.CertificateBuilder()
        .subject_name(names[0])
        .issuer_name(names[1])
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if not ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), critical=True)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(Encoding.PEM)
