"""A signing key in AWS KMS, or what speaks its protocol: the private key never leaves it.

One call per signing. What goes wrong is said in our own errors: what time may mend can be tried again, what an operator
must mend can not.
"""

import hashlib
import os
from dataclasses import dataclass, field
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
)

from compliance.errors import BadCredentials, SigningUnavailable

#: KMS's name and the digest of each C2PA algorithm that it knows (KMS API, "Sign"; C2PA 2.2, "Digital signatures").
_ALGORITHMS = {
    "es256": ("ECDSA_SHA_256", "sha256"),
    "es384": ("ECDSA_SHA_384", "sha384"),
    "es512": ("ECDSA_SHA_512", "sha512"),
    "ps256": ("RSASSA_PSS_SHA_256", "sha256"),
}
MAX_RAW = 4096  # bytes; of more, KMS takes the digest
#: Answers that mean: not now. Everything else that KMS refuses, it refuses again.
_LATER = frozenset(
    {
        "ThrottlingException",
        "Throttling",
        "RequestLimitExceeded",
        "LimitExceededException",
        "KMSInternalException",
        "DependencyTimeoutException",
        "KeyUnavailableException",
        "ServiceUnavailable",
        "ServiceUnavailableException",
        "InternalFailure",
        "RequestTimeout",
    }
)
_OURS = (NoCredentialsError, PartialCredentialsError, NoRegionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class KmsKey:
    """A key by its id, ARN or alias. Building it does nothing yet; one object serves all threads and processes.

    `timeout` is seconds for one call, of which there are two at most. Who we are comes from where AWS's tools look for
    it: the environment, a profile, the instance's role.
    """

    key_id: str
    region: str = ""
    endpoint: str = ""
    timeout: float = 5.0
    _clients: dict[int, Any] = field(default_factory=dict, repr=False, compare=False)

    def sign(self, data: bytes, algorithm: str) -> bytes:
        """The signature over `data`, DER where the algorithm is ECDSA. `algorithm` is C2PA's name.

        Raises SigningUnavailable, and BadCredentials for what no retry mends.
        """
        if algorithm not in _ALGORITHMS:
            raise BadCredentials(f"KMS has no keys for {algorithm}.", fix="Use a key of the spec ECC_NIST_P256.")
        name, digest = _ALGORITHMS[algorithm]
        raw = len(data) <= MAX_RAW
        try:
            answer = self._client().sign(
                KeyId=self.key_id,
                Message=data if raw else hashlib.new(digest, data).digest(),
                MessageType="RAW" if raw else "DIGEST",
                SigningAlgorithm=name,
            )
        except ClientError as exc:
            raise _refused(exc) from exc
        except _OURS as exc:
            raise BadCredentials(
                f"KMS can't be asked: {exc}.", fix="Give this process credentials and a region of AWS."
            ) from exc
        except (BotoCoreError, OSError) as exc:
            # The message may hold the address; the kind of the error says enough.
            raise SigningUnavailable(f"KMS does not answer ({type(exc).__name__}).") from exc
        return bytes(answer["Signature"])

    def _client(self) -> Any:
        """One per process: connections don't survive a fork. Of two that are made at once, the first is kept."""
        client = self._clients.get(os.getpid())
        if client is not None:
            return client
        config = Config(
            connect_timeout=self.timeout,
            read_timeout=self.timeout,
            retries={"mode": "standard", "total_max_attempts": 2},
            max_pool_connections=32,
        )
        session = boto3.session.Session(region_name=self.region or None)
        made = session.client("kms", endpoint_url=self.endpoint or None, config=config)
        return self._clients.setdefault(os.getpid(), made)


def _refused(exc: ClientError) -> SigningUnavailable:
    code = str(exc.response.get("Error", {}).get("Code", ""))
    status = int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in _LATER or status >= 500 or status == 429:
        return SigningUnavailable(f"KMS can't sign now ({code or status}).")
    return BadCredentials(f"KMS refuses to sign ({code or status}).", fix=_FIXES.get(code, "See the key in KMS."))


_FIXES = {
    "AccessDeniedException": "Allow kms:Sign on this key.",
    "DisabledException": "Enable the key.",
    "KMSInvalidStateException": "Enable the key, or cancel its deletion.",
    "NotFoundException": "Name a key that exists in this region.",
    "InvalidKeyUsageException": "Use a key that was made to sign (SIGN_VERIFY) with the certificate's algorithm.",
}
