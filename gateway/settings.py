"""The one reader of the environment. Every setting has a row in README.md; a test fails when one is missing there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from gateway.errors import SettingsError

PREFIX = "IMGEN_"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9_-]+(?:/[A-Za-z0-9_-]+)*")
#: Seconds that a presigned address can live.
_WEEK = 604_800

_ORIGIN = re.compile(r"(?P<scheme>https?)://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::(?P<port>[1-9][0-9]{0,4}))?")


def _http_url(value: str) -> str:
    if value and not value.startswith(("http://", "https://")):
        raise ValueError("must start with http:// or https://")
    return value.rstrip("/")


def _service(value: str) -> str:
    """A whole address with no secret in it: this one goes to an SDK that would only find out at the first call."""
    if not value:
        return value
    address = urlsplit(value)
    if not address.hostname or address.port == 0:
        raise ValueError("must name a host, as in https://api.example.com/v1")
    if address.username is not None or address.password is not None:
        raise ValueError("must have no name or password in it, for addresses end up in logs; set the key on its own")
    return value


def _prefix(value: str) -> str:
    """Empty, or ending in one slash."""
    value = value.strip("/")
    if value and not _PREFIX.fullmatch(value):
        raise ValueError("must be names of a-z, A-Z, 0-9, _ and - with slashes between them")
    return f"{value}/" if value else ""


def _origins(value: str) -> str:
    """Origins as browsers send them: an entry that none ever sends would forbid in silence what it means to allow."""
    for origin in _split(value):
        if origin in {"*", "null"}:
            raise ValueError(f"{origin} is everybody; name each origin, such as https://www.example.org")
        match = _ORIGIN.fullmatch(origin)
        if match is None:
            raise ValueError(
                f"{origin} is no origin; write https://www.example.org or http://localhost:3000, in small letters and "
                "without a path or a slash at the end"
            )
        scheme, port = match["scheme"], int(match["port"] or 0)
        if port == {"http": 80, "https": 443}[scheme] or port > 65535:
            raise ValueError(f"{origin}: leave the port out where it is the usual one, and keep it below 65536")
    return value


def _split(value: str) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, value.split(","))))


HttpUrl = Annotated[str, AfterValidator(_http_url)]
ServiceUrl = Annotated[HttpUrl, AfterValidator(_service)]
Seconds = Annotated[float, Field(gt=0)]
Temperature = Annotated[float | None, BeforeValidator(lambda value: None if value == "none" else value)]


class Settings(BaseModel):
    """Frozen settings of one gateway process. The environment variable of a field is its name with ``IMGEN_``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path = Field(Path("var"), description="Folder for everything that the embedded default keeps")
    host: str = Field("127.0.0.1", description="Address to listen on")
    port: int = Field(8080, ge=1, le=65535, description="Port to listen on")
    public_url: HttpUrl = Field("", description="How callers reach this gateway; picture URLs begin with it")
    internal_url: HttpUrl = Field("", description="How the worker and the endpoint reach this gateway")
    cors_origins: Annotated[str, AfterValidator(_origins)] = Field(
        "", description="Comma-separated origins that browsers may call from"
    )

    api_key: str = Field("", description="A key to register at the start, 16 characters at least")
    secret: str = Field("", description="Secret that signs URLs; made and kept in the data folder when empty")
    database_url: str = Field("", description="SQLAlchemy URL of the job store; SQLite in the data folder when empty")
    catalog: Path | None = Field(None, description="Your own catalog.toml; the shipped one when empty")

    backend_url: HttpUrl = Field("", description="Base URL of the serverless endpoint, RunPod's or the local one")
    backend_key: str = Field("", description="API key of the serverless endpoint")
    backend_min_workers: int = Field(0, ge=0, description="Workers that must be up before /readyz says yes")
    execution_timeout: Seconds = Field(300, description="Seconds that a worker may draw")
    job_ttl: Seconds = Field(330, description="Seconds from submit after which an undrawn job is given up")

    url_ttl: Seconds = Field(3600, description="Seconds that a picture URL lives; each status call signs anew")
    upload_ttl: Seconds = Field(3600, description="Seconds that a worker's upload URL lives")
    lease: Seconds = Field(15, description="Seconds after which another replica takes over an abandoned job")
    sweep_interval: Seconds = Field(1, description="Seconds between two looks at the open jobs")
    poll_interval: Seconds = Field(2, description="Seconds between two questions to the endpoint about one job")
    finish_deadline: Seconds = Field(180, description="Seconds in which review, signing and storing must succeed")
    finish_threads: int = Field(2, ge=1, le=64, description="Pictures finished at the same time")

    llm_url: ServiceUrl = Field(
        "",
        description="OpenAI-compatible language model for optimize, up to /v1; the catalogue's phrases when empty",
    )
    llm_key: str = Field("", description="Key of the language model")
    llm_model: str = Field("", description="Name of the language model")
    llm_timeout: Seconds = Field(15, description="Seconds that enhancing one prompt may take, further tries among them")
    llm_temperature: Temperature = Field(None, description="Its temperature; none leaves it to the model")
    llm_max_tokens: int = Field(1024, ge=16, description="Tokens of one answer, with what it thinks before it")

    rulesets: Path | None = Field(None, description="Folder of your own rulesets, beside the shipped ones")
    word_rules: Path | None = Field(None, description="Your own word rules (TOML), beside the shipped ones")
    detector: Path | None = Field(None, description="TOML file that describes an ONNX picture classifier of yours")
    known_pictures: Path | None = Field(None, description="Your list of known bad pictures, a PDQ hash a line")
    moderation_url: HttpUrl = Field("", description="OpenAI-compatible moderation endpoint, up to /v1; none when empty")
    moderation_key: str = Field("", description="Key of the moderation endpoint")
    moderation_model: str = Field("omni-moderation-latest", description="Model of the moderation endpoint")
    moderation_images: bool = Field(True, description="Whether it takes pictures, or only text")
    moderation_timeout: Seconds = Field(15, description="Seconds that one call of it may take")
    judge_url: HttpUrl = Field("", description="OpenAI-compatible vision model that judges by the ruleset, up to /v1")
    judge_key: str = Field("", description="Key of the judge")
    judge_model: str = Field("", description="Model of the judge")
    judge_schema: bool = Field(True, description="Whether it knows json_schema answers, or only json_object")
    judge_temperature: Temperature = Field(0.0, description="Its temperature; none for models that take none")
    judge_timeout: Seconds = Field(60, description="Seconds that one call of it may take")
    acs_url: HttpUrl = Field(
        "", description="A compliance service of its own; the reviewers of this process when empty"
    )
    acs_key: str = Field(
        "", description="Key of the compliance service, the same on both sides; 16 characters at least"
    )
    acs_timeout: Seconds = Field(60, description="Seconds that one review of the compliance service may take")
    acs_threads: int = Field(4, ge=1, le=256, description="Pictures that are reviewed at the same time")
    minors_hold: Literal["picture", "prompt", "off"] = Field(
        "picture", description="When a rule about minors holds the key: for a picture, for refused words too, or never"
    )
    operator_webhook: HttpUrl = Field("", description="Where the operator's events are sent, signed; none when empty")
    operator_secret: str = Field("", description="Secret of that webhook, whsec_ and Base64 (Standard Webhooks)")
    audit_prompts: bool = Field(False, description="Whether the audit holds prompts, and not only their hashes")
    unsafe_url_ttl: Seconds = Field(300, description="Seconds that the URL of a blocked picture lives")

    retention_days: float = Field(0, ge=0, description="Days after its end that a job is deleted; 0 keeps it for ever")
    quarantine_days: float = Field(0, ge=0, description="Days that originals of blocked pictures stay; 0: as the job")
    master_days: float = Field(0, ge=0, description="Days that originals of delivered pictures stay; 0: as the job")
    cache: Literal["on", "off"] = Field("on", description="Whether completed jobs are kept in the semantic cache")
    cache_url: HttpUrl = Field("", description="A Qdrant server for it; an index in this process's memory when empty")
    cache_key: str = Field("", description="API key of the Qdrant server")
    cache_encoder: str = Field(
        "minilm", description="What turns prompts into vectors: minilm, or a sentence-transformers model or its folder"
    )
    cache_guard: Literal["ordered", "words", "off"] = Field(
        "ordered", description="What must agree beside the similarity: the words in order, the telling ones, or nothing"
    )
    cache_floor: float = Field(0.95, ge=0, lt=1, description="Similarity that a hit must exceed")
    cache_force_floor: float = Field(0, ge=-1, lt=1, description="The same for requests with cache_force")
    cache_days: float = Field(
        0, ge=0, description="Days that a job may be found by the cache; 0: as long as it is kept"
    )
    cache_timeout: Seconds = Field(0.5, description="Seconds that a look into the cache may take; then it is a miss")
    s3_bucket: str = Field("", description="Bucket for the pictures; a folder in the data folder when empty")
    s3_region: str = Field("", description="Region of the bucket; boto3's own setting when empty")
    s3_endpoint: HttpUrl = Field("", description="Another S3 than Amazon's, such as http://minio:9000")
    s3_public_endpoint: HttpUrl = Field("", description="How callers and workers reach it, if not by the endpoint")
    s3_prefix: Annotated[str, AfterValidator(_prefix)] = Field(
        "", description="What all keys in the bucket begin with, such as imgen/production"
    )
    s3_path_style: bool = Field(False, description="The bucket in the path of an address, and not in its host")
    s3_access_key: str = Field("", description="Access key; empty: boto3 looks in its environment and for a role")
    s3_secret_key: str = Field("", description="Secret of the access key")
    s3_quarantine_days: int = Field(0, ge=0, description="Days of the bucket's rule for quarantine/; 0: no rule")
    s3_master_days: int = Field(0, ge=0, description="Days of the bucket's rule for master/; 0: no rule")

    signing_chain: Path | None = Field(None, description="PEM chain, leaf first; a development CA when empty")
    signing_key: Path | None = Field(None, description="PEM private key (PKCS#8) of the leaf")
    signing_anchors: Path | None = Field(None, description="PEM roots that the chain must lead to")
    signing_kms_key: str = Field("", description="Key of the leaf in AWS KMS (id, ARN or alias) instead of a file")
    signing_kms_region: str = Field("", description="Its region; as AWS's tools find it when empty")
    signing_kms_endpoint: HttpUrl = Field("", description="Another address of KMS, or of what speaks its protocol")
    tsa_url: HttpUrl = Field("", description="Time-stamp authority (RFC 3161) for the signatures; none when empty")
    tsa_timeout: float = Field(3, gt=0, le=20, description="Seconds that it may take; then a picture goes unstamped")
    training_mining: Literal["off", "notAllowed", "allowed", "constrained"] = Field(
        "off", description="What the pictures may be used for by those who train models (CAWG), said in each of them"
    )
    training_mining_info: str = Field("", max_length=2000, description="Under which constraints, for constrained")
    embed_prompts: bool = Field(False, description="Whether the XMP of a picture holds its prompt, for all to read")
    pixel_mark: bool = Field(True, description="Whether pictures carry an id in their pixels that nobody sees")
    pixel_mark_key: str = Field(
        "", description="Secret of these ids, the same for ever; from IMGEN_SECRET when empty; 16 characters at least"
    )
    verify_rate: float = Field(60, ge=0, description="Pictures a minute that one address may have verified; 0: none")
    badge: Literal["off", "top-left", "top-right", "center", "bottom-left", "bottom-right"] = Field(
        "off", description='Where every picture shows the badge "AI", if anywhere'
    )
    provider: str = Field("imgen", max_length=256, description="Who offers the service, as the pictures say it")
    author: str = Field("", max_length=256, description="Default of cs_author")
    title: str = Field("", max_length=256, description="Default of cs_title")
    description: str = Field("", max_length=2000, description="Default of cs_description")
    organization: str = Field("", max_length=256, description="Default of cs_organization")
    vendor: str = Field("", max_length=256, description="Default of cs_vendor")

    unknown_character: Literal["error", "ignore"] = Field("error", description="What an unknown @name does")
    unknown_ruleset: Literal["default", "error"] = Field("default", description="What an unknown ruleset name does")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged")
    log_format: Literal["json", "console"] = Field("json", description="One JSON object per line, or for people")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.api_key and len(self.api_key) < 16:
            raise ValueError("api_key: must have 16 characters at least")
        if self.secret and len(self.secret) < 32:
            raise ValueError("secret: must have 32 characters at least")
        if self.signing_key is not None and self.signing_kms_key:
            raise ValueError("signing_kms_key: set it or signing_key, not both")
        if (self.signing_chain is None) != (self.signing_key is None and not self.signing_kms_key):
            raise ValueError("signing_chain: set it together with signing_key or signing_kms_key")
        if (self.training_mining == "constrained") != bool(self.training_mining_info):
            raise ValueError("training_mining_info: set it together with training_mining=constrained, and only then")
        if self.judge_url and not self.judge_model:
            raise ValueError("judge_url: set it together with judge_model")
        if bool(self.llm_url) != bool(self.llm_model):
            raise ValueError("llm_url: set it together with llm_model")
        if not (self.llm_key.isascii() and self.llm_key.isprintable()):
            raise ValueError("llm_key: must be printable ASCII")
        if self.pixel_mark_key and len(self.pixel_mark_key) < 16:
            raise ValueError("pixel_mark_key: must have 16 characters at least")
        if self.operator_webhook and not self.operator_secret:
            raise ValueError("operator_webhook: set it together with operator_secret")
        if self.acs_key and not (self.acs_key.isascii() and len(self.acs_key) >= 16):
            raise ValueError("acs_key: must have 16 ASCII characters at least; make one with: openssl rand -hex 24")
        if self.cache_key and not self.cache_url:
            raise ValueError("cache_key: set it together with cache_url")
        if self.acs_url and not self.acs_key:
            raise ValueError("acs_url: set it together with acs_key")
        if self.acs_url and self.finish_deadline <= self.acs_timeout:
            raise ValueError("finish_deadline: must be above acs_timeout")
        self._check_s3()
        if self.job_ttl < self.execution_timeout:
            raise ValueError("job_ttl: must not be below execution_timeout")
        return self

    def _check_s3(self) -> None:
        if not self.s3_bucket:
            for name in ("s3_endpoint", "s3_public_endpoint", "s3_prefix", "s3_access_key"):
                if getattr(self, name):
                    raise ValueError(f"{name}: set it together with s3_bucket")
            return
        if not _BUCKET.fullmatch(self.s3_bucket):
            raise ValueError("s3_bucket: must be a bucket's name: 3 to 63 of a-z, 0-9, dot and hyphen; no address")
        if "." in self.s3_bucket and not self.s3_path_style:
            raise ValueError("s3_bucket: a name with a dot fits no certificate; set s3_path_style, or use another name")
        if bool(self.s3_access_key) != bool(self.s3_secret_key):
            raise ValueError("s3_access_key: set it together with s3_secret_key")
        for name in ("url_ttl", "upload_ttl", "unsafe_url_ttl"):
            if getattr(self, name) > _WEEK:
                raise ValueError(f"{name}: must not be above {_WEEK} with s3_bucket: no S3 address lives longer")

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Self:
        """Raises `SettingsError` naming the variable. Empty variables count as not set."""
        given = {
            name: environ[PREFIX + name.upper()] for name in cls.model_fields if environ.get(PREFIX + name.upper())
        }
        try:
            return cls.model_validate(given)
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_input=False)[0]
            name, problem = ".".join(str(part) for part in first["loc"]), first["msg"].removeprefix("Value error, ")
            if not name:
                name, _, problem = problem.partition(": ")
            raise SettingsError(f"{PREFIX}{name.upper()}: {problem}") from None

    def base_url(self) -> str:
        """The public URL, or the address listened on."""
        return self.public_url or f"http://{_reachable(self.host)}:{self.port}"

    def worker_url(self) -> str:
        """Where the worker sends pictures and the endpoint its webhooks."""
        return self.internal_url or self.public_url or f"http://{_reachable(self.host)}:{self.port}"

    def origins(self) -> tuple[str, ...]:
        """Who may call from a browser, beside the gateway's own pages."""
        return _split(self.cors_origins)

    def database(self) -> str:
        return self.database_url or f"sqlite+aiosqlite:///{self.data / 'imgen.db'}"


def _reachable(host: str) -> str:
    if host in {"0.0.0.0", "::", ""}:
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
