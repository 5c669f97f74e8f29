"""The errors of this library. Errors of Pillow, imagecodecs, cryptography and c2pa are translated into these at one
edge each.

ComplianceError
├── PictureRefused        the bytes are not a picture that we take
├── LogoRefused           the bytes are not a logo that we take
├── BrokenRender          the renderer gave a picture, but it is blank or has the wrong size
├── ReviewUnavailable     no verdict, and no verdict means no picture
├── BadRules              a rule file or a ruleset does not read
├── EncodingFailed        a codec gave up
└── SigningUnavailable    we can't sign so that a reader trusts it
    └── BadCredentials    the certificate chain or its key is wrong
"""

from typing import ClassVar


class ComplianceError(Exception):
    """The picture can't be released."""

    code: ClassVar[str] = "compliance_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str = "", *, fix: str = "") -> None:
        """`message` says what happened, `fix` what to do about it; without a message the class's docstring speaks."""
        self.message = message or (type(self).__doc__ or "").strip()
        self.fix = fix
        super().__init__(self.message if not fix else f"{self.message} {fix}")


class PictureRefused(ComplianceError):
    """These bytes are not a picture that we take."""

    code = "picture_refused"


class LogoRefused(ComplianceError):
    """These bytes are not a logo that we take. The message goes on after the name of the logo."""

    code = "logo_refused"


class BrokenRender(ComplianceError):
    """The renderer gave a broken picture."""

    code = "broken_render"
    retryable = True


class ReviewUnavailable(ComplianceError):
    """The review gave no verdict."""

    code = "compliance_unavailable"
    retryable = True

    def __init__(
        self, message: str = "", *, fix: str = "", again: bool = True, after: float = 0.0, outage: bool = True
    ) -> None:
        """`retryable` is for the job; the rest is for whoever asks the reviewer.

        `again` says that asking it again at once may help, `after` how many seconds it wants to be left alone first,
        and `outage` that it is the reviewer that is broken, not the question that it has no answer to.
        """
        super().__init__(message, fix=fix)
        self.again = again
        self.after = after
        self.outage = outage


class BadRules(ComplianceError):
    """A rule file can't be read."""

    code = "bad_rules"


class EncodingFailed(ComplianceError):
    """The picture could not be encoded."""

    code = "encoding_failed"


class SigningUnavailable(ComplianceError):
    """The picture could not be signed."""

    code = "signing_unavailable"
    retryable = True


class BadCredentials(SigningUnavailable):
    """The signing certificate or its key can't be used."""

    code = "bad_credentials"
    retryable = False
