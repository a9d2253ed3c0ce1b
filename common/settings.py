"""Every setting, with its default, its meaning and its name in the environment.

Built once in each composition root (`api.app.create_app`, `worker.__main__`, `worker.dispatcher`)
and handed down. `.env.example` is generated from this file (`python -m scripts.env_example`) and a
test compares the two.
"""

from __future__ import annotations

import grp
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote, unquote, urlsplit

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from common.domain.keys import Limits
from common.domain.languages import AUTO, LANGUAGES
from common.errors import SetupProblem
from common.files import OWN, FileAccess

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = ROOT.parent.name in {"site-packages", "dist-packages"}
HOME = (
    Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "stenopool"
    if INSTALLED
    else ROOT
)
"""Where settings, data and weights are by default: in the checkout. The folder of a copy that pip,
pipx or uv has installed is replaced with the next version: then they are in the user's own."""
DOTENV = Path(os.environ.get("STENO_ENV_FILE") or HOME / ".env")
SECRETS = (Path("/run/secrets"), Path("/run/secrets/stenopool"))
"""Where containers find secrets: one file a setting, named as it is in the environment. The second
is for Kubernetes, where others mount what they have to say below the first."""

LOGIN = re.compile(r"(\w[\w+]*://[^:/@]+)(?::([^@]*))?@")
"""The beginning of a database's URL, up to the user, and the password, as SQLAlchemy reads them."""


def origin_of(url: str) -> str:
    """Scheme, host and port of an address."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _public(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("an address such as https://steno.example.org")
    return url.rstrip("/")


PublicUrl = Annotated[str, AfterValidator(_public)]


def _config(prefix: str = "") -> SettingsConfigDict:
    return SettingsConfigDict(
        env_prefix=prefix,
        env_file=DOTENV,
        secrets_dir=[folder for folder in SECRETS if folder.is_dir()],
        env_ignore_empty=True,
        extra="ignore",
        use_attribute_docstrings=True,
        validate_default=True,
        # env_prefix does not reach aliases, and a field with an alias still answers to its name
        populate_by_name=True,
    )


class ApiSettings(BaseSettings):
    """Gateway."""

    model_config = _config("API_")

    host: Annotated[str, AfterValidator(lambda host: host.strip("[]"))] = "127.0.0.1"
    """Address the gateway listens on, such as ::1 of IPv6."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    """Port the gateway listens on; 0 takes a free one."""
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    """Gateway processes on this host."""
    public_url: PublicUrl | None = None
    """Where clients reach the gateway, such as https://steno.example.org, for its documentation and
    links; with https, browsers are told to use nothing else."""
    root_path: Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._~-]+)*$")] = ""
    """What a proxy takes off the beginning of each path, such as /steno."""
    forwarded_allow_ips: str = "127.0.0.1"
    """Proxies whose X-Forwarded-For and X-Forwarded-Proto are believed, separated by commas."""
    max_header_kb: Annotated[int, Field(ge=4, le=1024)] = 16
    """Largest head of a request, in KB; a larger one is answered 431, a URL of half of it 414."""
    max_body_kb: Annotated[int, Field(ge=1)] = 1000
    """Largest body of a request, in KB; recordings and texts to judge have limits of their own."""
    head_timeout: Annotated[float, Field(gt=0)] = 10.0
    """Seconds that the head of a request may take; then it is answered 408."""
    keep_alive: Annotated[int, Field(ge=0)] = 5
    """Seconds that a connection is kept open for the next request. A load balancer that keeps its
    own open for longer may send into one that is being closed: set this above its limit."""
    max_connections: Annotated[int, Field(ge=1)] = 4000
    """Connections at once on one gateway process, never more than its file descriptors allow. Where
    there is no room for another, the one that has waited longest for a request is closed."""
    max_connections_each: Annotated[int, Field(ge=1)] = 1000
    """Of those, the most of one address (IPv6: of one /64). API_FORWARDED_ALLOW_IPS are exempt, as
    a proxy brings everybody's connections."""


class KeySettings(BaseSettings):
    """Keys. `steno keys create` makes more; without any the gateway listens on loopback only."""

    model_config = _config()

    gateway_api_key: SecretStr | None = None
    """A key that may do everything, in every tenant; make one with `openssl rand -hex 32`."""
    steno_api_key: SecretStr | None = None
    """The key that the `steno` commands send; unset: GATEWAY_API_KEY, if there is one."""

    secrets_key: SecretStr | None = None
    """Encrypts webhook secrets in Postgres: 32 characters at least (`openssl rand -hex 32`). Of
    several, separated by commas, the first one encrypts, and all decrypt; if it is lost, so are
    they. Unset: they are stored as they are."""

    @property
    def for_secrets(self) -> tuple[str, ...]:
        """The keys in SECRETS_KEY."""
        text = "" if self.secrets_key is None else self.secrets_key.get_secret_value()
        return tuple(key.strip() for key in text.split(",") if key.strip())

    @property
    def of_client(self) -> str | None:
        key = self.steno_api_key or self.gateway_api_key
        return None if key is None else key.get_secret_value()


class LimitSettings(BaseSettings):
    """Limits of each key of `steno keys create`, which may have its own; 0: none."""

    model_config = _config("LIMIT_")

    requests_per_second: Annotated[int, Field(ge=0)] = 50
    """Requests in a second; a long poll is one."""
    requests_per_minute: Annotated[int, Field(ge=0)] = 1200
    """Requests in a minute."""
    concurrent_jobs: Annotated[int, Field(ge=0)] = 100
    """Jobs that have not ended."""
    concurrent_streams: Annotated[int, Field(ge=0)] = 10
    """Live streams at once."""
    audio_hours_per_day: Annotated[float, Field(ge=0)] = 0
    """Hours of audio sent in a day (UTC)."""

    @cached_property
    def limits(self) -> Limits:
        return Limits(**self.model_dump())


class CorsSettings(BaseSettings):
    """Web pages of other origins."""

    model_config = _config("CORS_")

    origins: str = "http://localhost:5173,http://127.0.0.1:5173"
    """Those whose pages may ask this gateway, separated by commas; * for all. Cookies play no part:
    a page needs a key as any other client does."""

    @cached_property
    def allowed(self) -> tuple[str, ...]:
        return tuple(each.strip().rstrip("/") for each in self.origins.split(",") if each.strip())


class EventSettings(BaseSettings):
    """Live progress (server-sent events)."""

    model_config = _config("EVENTS_")

    max_watchers: Annotated[int, Field(ge=1)] = 2000
    """How many may watch jobs at once on one gateway process; the next one is answered 503."""
    max_watchers_each: Annotated[int, Field(ge=1)] = 1000
    """Of those, the most of one tenant; those who wait at OpenAI's routes count as well."""
    heartbeat: Annotated[float, Field(gt=0, le=60)] = 15.0
    """Seconds of silence after which a comment is sent, so that nobody takes the line for dead."""


class StreamSettings(BaseSettings):
    """Live streams (WS /ws/transcribe, POST /asr/stream), heard beside each gateway process."""

    model_config = _config("STREAM_")

    engine: Literal["faster-whisper", "zipformer"] = "faster-whisper"
    """Engine of streams that name no model."""
    model: str = "base"
    """Model of streams that name none."""
    max_whisper: Annotated[int, Field(ge=0, le=1000)] = 2
    """Streams that faster-whisper hears at once on one gateway process; 0: none. Two cores keep
    pace with so many (base); `steno bench stream` says what yours do. The next one is refused."""
    max_zipformer: Annotated[int, Field(ge=0, le=1000)] = 10
    """Streams that zipformer hears at once; 0: none. Two cores keep pace with 12 (70 MB model)."""
    threads: Annotated[int, Field(ge=1, le=256)] = 2
    """Threads of a recognizer: all of an engine's streams share one process."""
    max_models: Annotated[int, Field(ge=1, le=100)] = 2
    """Models in memory at once; one that no stream needs makes room for another."""
    unload_after: Annotated[float, Field(ge=0)] = 900.0
    """Seconds after which a model that no stream needs leaves the memory."""
    preload: bool = False
    """Load STREAM_MODEL at the start, so that the first stream need not wait for it; the gateway is
    not ready before it is loaded."""
    idle: Annotated[float, Field(gt=0)] = 60.0
    """Seconds without sound and without KeepAlive after which a stream is closed; those in which it
    waits for its model to be loaded do not count."""
    patience: Annotated[float, Field(gt=0)] = 60.0
    """Seconds for which sound may come in faster than it is heard without a break; then a WebSocket
    is closed. POST /asr/stream is read as fast as it is heard."""
    max_hours: Annotated[float, Field(gt=0, le=500)] = 4.0
    """Longest stream, in hours of sound."""

    def limit_of(self, engine: str) -> int:
        """How many streams ``engine`` may hear at once."""
        return self.max_zipformer if engine == "zipformer" else self.max_whisper


class OpenAiSettings(BaseSettings):
    """The API that OpenAI's clients speak (/v1)."""

    model_config = _config("OPENAI_")

    wait: Annotated[float, Field(gt=0)] = 600.0
    """Seconds an answer may wait for its text; the job goes on after that, and has its own."""


class UploadSettings(BaseSettings):
    """Uploads."""

    model_config = _config()

    max_upload_size_mb: Annotated[int, Field(ge=1)] = 2048
    """Largest recording taken, in MB (1,000,000 bytes); a larger one is cut off on its way in."""
    max_audio_hours: Annotated[float, Field(gt=0, le=500)] = 24.0
    """Longest recording taken, in hours. What a file claims is not believed: one that turns out to
    be longer FAILs there, since a small file can become days of sound that fill the storage."""

    @property
    def max_bytes(self) -> int:
        return self.max_upload_size_mb * 1_000_000


class StorageSettings(BaseSettings):
    """Files. Gateway and workers must see the same UPLOAD_DIR, or the same bucket."""

    model_config = _config()

    storage_backend: Literal["local", "s3"] = "local"
    """local: the folders below; s3: a bucket, and of the folders only DATA_DIR and TEMP_DIR."""
    data_dir: Path = HOME / "data"
    """Home of the embedded servers and of the folders below where those are not set."""
    upload_dir: Path | None = None
    """Recordings and the sound cut from them (DATA_DIR/uploads)."""
    results_dir: Path | None = None
    """Finished transcripts in every format, one folder a job (DATA_DIR/results)."""
    temp_dir: Path | None = None
    """Uploads on their way in; for local on the same file system as UPLOAD_DIR
    (UPLOAD_DIR/.incoming)."""
    data_group: str | None = None
    """Group, by name or number, whose members may read what is stored in these folders, and add and
    remove files, as processes of other users do that share them. Unset: nobody else may."""
    min_free_mb: Annotated[int, Field(ge=0)] = 200
    """Space below which TEMP_DIR counts as full: no upload is taken in, and the gateway is not
    ready. What is left is for the jobs that were accepted."""
    s3_bucket: str | None = None
    """Bucket for recordings, sound and results; it has to be there."""
    s3_prefix: str = ""
    """What the names of all objects begin with, such as steno/."""
    s3_endpoint_url: str | None = None
    """Where the server is, such as http://minio:9000; unset: AWS."""
    s3_region: str | None = None
    """Its region; unset: as the AWS libraries find it, else us-east-1."""
    s3_access_key_id: str | None = None
    """Who asks; unset, with the secret: as the AWS libraries find it (role, profile, ...)."""
    s3_secret_access_key: SecretStr | None = None
    """The secret to it."""
    s3_addressing_style: Literal["auto", "path", "virtual"] = "auto"
    """Where the bucket's name goes: path for most servers that are not AWS."""
    s3_public_url: str | None = None
    """Where clients reach the server, for links; unset: S3_ENDPOINT_URL."""
    s3_links: bool = True
    """Answer with a link to a recording; false: the gateway passes the recording on, so that
    clients need not reach the server."""
    s3_link_seconds: Annotated[int, Field(ge=10, le=604_800)] = 900
    """How long a link to a recording is good."""

    @property
    def min_free_bytes(self) -> int:
        return self.min_free_mb * 1_000_000

    @cached_property
    def access(self) -> FileAccess:
        """Who may use what is stored.

        Raises:
            SetupProblem: there is no such group.
        """
        if self.data_group is None:
            return OWN
        try:
            name = self.data_group
            return FileAccess(int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid)
        except KeyError as error:
            raise SetupProblem(
                problem=f"DATA_GROUP names a group that this system does not have: {name}",
                remedy="Name one of /etc/group, or give its number",
            ) from error

    @cached_property
    def uploads(self) -> Path:
        return (self.upload_dir or self.data_dir / "uploads").absolute()

    @cached_property
    def results(self) -> Path:
        return (self.results_dir or self.data_dir / "results").absolute()

    @cached_property
    def temp(self) -> Path:
        return (self.temp_dir or self.uploads / ".incoming").absolute()


class DatabaseSettings(BaseSettings):
    """Postgres, the truth."""

    model_config = _config("DATABASE_")

    url: SecretStr | None = None
    """postgresql://user:password@host:port/name; unset: `steno up` starts an embedded Postgres."""
    password: SecretStr | None = None
    """Password, where DATABASE_URL has none."""
    pool_size: Annotated[int, Field(ge=1, le=200)] = 10
    """Connections a process keeps at most."""

    @property
    def address(self) -> str | None:
        """The URL to connect to, or None when Postgres is not configured."""
        if self.url is None:
            return None
        url = self.url.get_secret_value()
        login = LOGIN.match(url)
        if login is None:
            return url
        user, password = login.groups()
        if password is not None:
            password = unquote(password)
        elif self.password is not None:
            password = self.password.get_secret_value()
        else:
            return url
        # libpq is stricter than SQLAlchemy, and repeats what it cannot read.
        return f"{user}:{quote(password, safe='')}@{url[login.end() :]}"


class RedisSettings(BaseSettings):
    """Redis, the doorbell."""

    model_config = _config("REDIS_")

    url: SecretStr | None = None
    """redis://[:password@]host:port/db; goes before the four below. None: an embedded Valkey."""
    host: str | None = None
    """Host, where no REDIS_URL is given."""
    port: Annotated[int, Field(ge=1, le=65_535)] = 6379
    """Port, where no REDIS_URL is given."""
    db: Annotated[int, Field(ge=0)] = 0
    """Database number, where no REDIS_URL is given."""
    password: SecretStr | None = None
    """Password, where no REDIS_URL is given."""

    @property
    def address(self) -> str | None:
        """The URL to connect to, or None when Redis is not configured."""
        if self.url is not None:
            return self.url.get_secret_value()
        if self.host is None:
            return None
        secret = self.password.get_secret_value() if self.password else ""
        login = f":{quote(secret, safe='')}@" if secret else ""
        return f"redis://{login}{self.host}:{self.port}/{self.db}"


class AsrSettings(BaseSettings):
    """Speech recognition."""

    model_config = _config()

    default_engine: Literal["faster-whisper", "whisper.cpp"] = "faster-whisper"
    """Engine of jobs that name none."""
    default_model: Annotated[
        str,
        Field(validation_alias=AliasChoices("default_model", "asr_model_name")),
    ] = "base"
    """Model of jobs that name none (also ASR_MODEL_NAME); `steno models list` shows all."""
    default_language: Annotated[
        str,
        Field(validation_alias=AliasChoices("default_language", "asr_language")),
    ] = "vi"
    """Language of jobs that name none (also ASR_LANGUAGE): a Whisper code, or auto."""
    models_dir: Path = HOME / "models"
    """Where the weights are."""
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    """Where faster-whisper computes."""
    compute_type: str = "int8"
    """faster-whisper's arithmetic: int8 on CPU; float16 or int8_float16 on CUDA."""
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    """Threads an engine uses; one process of one thread per core is fastest."""
    engine_idle: Annotated[float, Field(ge=0)] = 600.0
    """Seconds without work after which a worker ends its engine's process, so that its memory is
    free; the next step starts one again. 0: never."""

    @field_validator("default_language")
    @classmethod
    def _is_known(cls, language: str) -> str:
        code = language.strip().lower()
        if code != AUTO and code not in LANGUAGES:
            raise ValueError(f"must be one of {AUTO}, {', '.join(LANGUAGES)}; got {language!r}")
        return code


class ChunkSettings(BaseSettings):
    """Cutting."""

    model_config = _config("CHUNK_")

    strategy: Literal["vad", "silence", "fixed"] = "vad"
    """vad: by speech (Silero); silence: by energy; fixed: by the clock, overlapping."""
    duration: Annotated[float, Field(ge=1, le=30)] = 30.0
    """Longest window the engine hears at once, in seconds."""
    overlap: Annotated[float, Field(ge=0, le=10)] = 2.0
    """Seconds that neighbours share where no silence is found to cut in."""
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds any one step may take; a chunk gets four times its audio length on top."""


class SilenceSettings(BaseSettings):
    """Silence (strategies silence and vad)."""

    model_config = _config()

    silence_threshold: Annotated[float, Field(ge=-96, le=0)] = -40.0
    """Loudness below which sound counts as silence for the strategy silence, in dBFS."""
    min_silence_duration: Annotated[int, Field(ge=10, le=10_000)] = 500
    """Shortest silence worth cutting in, in milliseconds."""


class ModerationSettings(BaseSettings):
    """Moderation: which segments are offensive or hateful."""

    model_config = _config()

    ai_load_models: bool = True
    """Moderate at all; false: jobs are not moderated, and POST /moderation answers 503."""
    use_onnxruntime: bool = True
    """Run the model in PHOBERT_ONNX_DIR; false: the one in PHOBERT_CHECKPOINT_DIR, by PyTorch."""
    phobert_onnx_dir: Path = ROOT / "models" / "bert-finetuned-onnx"
    """Folder of an exported model (`steno moderation export`); a small one comes along."""
    phobert_checkpoint_dir: Path = HOME / "models" / "phobert-hsd"
    """Folder of a fine-tuned PhoBERT, as transformers saves it; needs `pip install .[train]`."""
    moderation_labels: str | None = None
    """What the model's outputs mean, in order, such as CLEAN,OFFENSIVE,HATE; for a model whose
    config.json names them otherwise."""
    moderation_threshold_offensive: Annotated[float | None, Field(gt=0, le=1)] = None
    """Least score at which a text is OFFENSIVE; unset: the model's own."""
    moderation_threshold_hate: Annotated[float | None, Field(gt=0, le=1)] = None
    """Least score at which a text is HATE; unset: the model's own."""


class JobSettings(BaseSettings):
    """Failures and limits of jobs."""

    model_config = _config()

    max_retries: Annotated[int, Field(ge=0, le=100)] = 3
    """How often a step that failed for a passing reason is tried again."""
    retry_delay: Annotated[float, Field(ge=0)] = 2.0
    """Seconds before the first retry; doubled each time, up to a minute."""
    job_timeout: Annotated[float, Field(ge=0)] = 0.0
    """Seconds a job may be PROCESSING before it is FAILED; 0: as long as it needs."""
    reuse_results: bool = True
    """Take over the text of a chunk that was heard before: same sound, weights and options."""
    upload_wait: Annotated[float, Field(gt=0)] = 86_400.0
    """Seconds a job that was made without a recording waits for one before it is CANCELLED."""
    delete_after: Annotated[int, Field(ge=0, le=315_360_000)] = 0
    """Seconds after its end at which a job is deleted with all it has; 0: never. A tenant
    (`steno tenants`) or a job may ask for another time."""


class WorkerSettings(BaseSettings):
    """Workers."""

    model_config = _config("WORKER_")

    lease: Annotated[float, Field(ge=2)] = 15.0
    """Seconds after which a step whose worker went silent is given to another."""
    stop_period: Annotated[float, Field(ge=0, le=86_400)] = 25.0
    """Seconds for which a worker that is told to stop goes on with the step in hand. Then, or when
    it is told again, another worker gets that at once. What stops it must wait 10 s longer."""
    nice: Annotated[int, Field(ge=0, le=19)] = 10
    """By how much workers give way to others on their machine (niceness): the gateway has to answer
    at once, also while every core transcribes."""
    max_growth_mb: Annotated[int, Field(ge=0)] = 600
    """The engine's process is replaced, between two steps, once it has grown by this since its
    weights were loaded."""
    max_steps: Annotated[int, Field(ge=1)] = 1000
    """The engine's process is replaced after this many steps."""


class EgressSettings(BaseSettings):
    """Where the service goes because a client named a URL: public addresses, and these."""

    model_config = _config("EGRESS_")

    allow: str = ""
    """Networks and hosts that may be reached although they are not public, separated by commas:
    10.1.0.0/16, minio.internal, .example.lan."""


class FetchSettings(BaseSettings):
    """Recordings that are submitted by URL. MAX_UPLOAD_SIZE_MB holds for them too."""

    model_config = _config("FETCH_")

    timeout: Annotated[float, Field(gt=0)] = 1800.0
    """Seconds that fetching one may take, every try included."""
    stall: Annotated[float, Field(gt=0)] = 30.0
    """Seconds of silence after which a server counts as gone."""
    tries: Annotated[int, Field(ge=1, le=100)] = 5
    """How often in a row it is gone on with, where it broke off, without getting any further."""


class WebhookSettings(BaseSettings):
    """Webhooks: messages to clients' URLs about the ends of their jobs."""

    model_config = _config("WEBHOOK_")

    timeout: Annotated[float, Field(gt=0)] = 15.0
    """Seconds that a receiver has for its answer, the connection included."""
    retry_delays: str = "30,120,600,3600"
    """Seconds from a failed attempt to the next one, give or take a fifth. The first attempt is
    made at once; when the last one has failed the message is given up."""
    pause_after: Annotated[int, Field(ge=1)] = 10
    """An endpoint is paused once so many messages to it in a row were given up."""
    at_once: Annotated[int, Field(ge=1, le=1000)] = 20
    """Messages a dispatcher sends at the same time."""
    at_once_each: Annotated[int, Field(ge=1, le=1000)] = 4
    """Of those, the most to one host for one tenant."""
    max_endpoints: Annotated[int, Field(ge=1)] = 20
    """Endpoints that a tenant may have."""
    keep_days: Annotated[int, Field(ge=1)] = 30
    """Days for which it is kept how a message was delivered; also how long one waits for a paused
    endpoint."""

    @property
    def delays_s(self) -> tuple[float, ...]:
        return tuple(float(part) for part in self.retry_delays.split(",") if part.strip())

    @field_validator("retry_delays")
    @classmethod
    def _are_numbers(cls, text: str) -> str:
        if any(float(part) < 0 for part in text.split(",") if part.strip()):
            raise ValueError("seconds, separated by commas, and none below 0")
        return text


class MetricsSettings(BaseSettings):
    """Metrics, for Prometheus: GET /metrics."""

    model_config = _config("METRICS_")

    open: bool = False
    """Answer without a key too: they tell how much there is to do, and of no tenant and no job."""


class LogSettings(BaseSettings):
    """Logs. They carry ids, never what was said."""

    model_config = _config("LOG_")

    level: Literal["TRACE", "DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severe message that is written."""
    file: Path | None = None
    """File to log to, rotated at 20 MB, five kept; unset: standard error."""
    as_json: Annotated[bool, Field(validation_alias=AliasChoices("log_json"))] = False
    """Write one JSON object a line, with the ids of request, job and step as fields."""


class Settings(BaseModel):
    """All of them."""

    api: ApiSettings = Field(default_factory=ApiSettings)
    key: KeySettings = Field(default_factory=KeySettings)
    limit: LimitSettings = Field(default_factory=LimitSettings)
    cors: CorsSettings = Field(default_factory=CorsSettings)
    events: EventSettings = Field(default_factory=EventSettings)
    stream: StreamSettings = Field(default_factory=StreamSettings)
    openai: OpenAiSettings = Field(default_factory=OpenAiSettings)
    upload: UploadSettings = Field(default_factory=UploadSettings)
    storage: StorageSettings = Field(default_factory=StorageSettings)
    database: DatabaseSettings = Field(default_factory=DatabaseSettings)
    redis: RedisSettings = Field(default_factory=RedisSettings)
    asr: AsrSettings = Field(default_factory=AsrSettings)
    chunk: ChunkSettings = Field(default_factory=ChunkSettings)
    silence: SilenceSettings = Field(default_factory=SilenceSettings)
    moderation: ModerationSettings = Field(default_factory=ModerationSettings)
    job: JobSettings = Field(default_factory=JobSettings)
    worker: WorkerSettings = Field(default_factory=WorkerSettings)
    egress: EgressSettings = Field(default_factory=EgressSettings)
    fetch: FetchSettings = Field(default_factory=FetchSettings)
    webhook: WebhookSettings = Field(default_factory=WebhookSettings)
    metrics: MetricsSettings = Field(default_factory=MetricsSettings)
    log: LogSettings = Field(default_factory=LogSettings)


def import_from_checkout() -> dict[str, str]:
    """The environment in which ``python -m`` takes our packages, wherever the caller stands."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1"}


def load_settings() -> Settings:
    """All settings, as the environment, `.env` and the secrets' folder have them.

    Raises:
        SetupProblem: one of them is wrong, which is named, or `.env` cannot be read.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        group: type[BaseSettings] = globals()[error.title]
        name = group.model_config["env_prefix"] + "_".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise SetupProblem(
            problem=f"The setting {name.upper()} is wrong: {reason}",
            remedy="It comes from the environment or from .env; .env.example has them all",
        ) from error
    except PermissionError as error:
        raise SetupProblem(
            problem=f"{error.filename} cannot be read by user {os.geteuid()}",
            remedy="It must be readable by the user or a group of this process; with Compose, "
            "`sh docker/secrets.sh` sees to that",
        ) from error
