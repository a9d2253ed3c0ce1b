"""Every setting, with its default, its meaning and its name in the environment.

Built once in each composition root (`api.app.create_app`, `worker.__main__`, `worker.dispatcher`)
and passed on. `.env.example` is generated from this file (`python -m scripts.env_example`), and a
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
from common.domain.models import (
    ANY_LANGUAGE,
    AUTO_MODEL,
    BATCH_ENGINES,
    WHISPER_ENGINES,
    ModelName,
    Names,
    Table,
    candidates,
    parse_table,
)
from common.errors import SetupProblem
from common.files import OWN, FileAccess

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = ROOT.parent.name in {"site-packages", "dist-packages"}
HOME = (
    Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "stenopool"
    if INSTALLED
    else ROOT
)
"""Where settings, data and models are by default: in the checkout. pip, pipx and uv replace the
folder of an installed copy with the next version, so there they are in the user's home."""
DOTENV = Path(os.environ.get("STENO_ENV_FILE") or HOME / ".env")
SECRETS = (Path("/run/secrets"), Path("/run/secrets/stenopool"))
"""Where containers find secrets: one file a setting, with the setting's name. The second is for
Kubernetes, which mounts files of its own below the first."""

LOGIN = re.compile(r"(\w[\w+]*://[^:/@]+)(?::([^@]*))?@")
"""The start of a database's URL, up to the user, and the password, as SQLAlchemy parses them."""


def origin_of(url: str) -> str:
    """Scheme, host and port of an address."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _public(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must be a URL such as https://steno.example.org")
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
    """Address the gateway listens on; ::1 for IPv6."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    """Port the gateway listens on; 0 chooses a free one."""
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    """Gateway processes on this host."""
    public_url: PublicUrl | None = None
    """URL at which clients reach the gateway, such as https://steno.example.org, for documentation
    and links; with https, browsers get an HSTS header."""
    root_path: Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._~-]+)*$")] = ""
    """Path prefix that a proxy strips, such as /steno."""
    forwarded_allow_ips: str = "127.0.0.1"
    """Proxies whose X-Forwarded-For and X-Forwarded-Proto are trusted, separated by commas."""
    max_header_kb: Annotated[int, Field(ge=4, le=1024)] = 16
    """Largest request headers, in KB; larger ones are answered 431, a URL of half that size 414."""
    max_body_kb: Annotated[int, Field(ge=1)] = 1000
    """Largest request body, in KB; recordings and texts for moderation have limits of their own."""
    head_timeout: Annotated[float, Field(gt=0)] = 10.0
    """Seconds within which request headers must arrive; otherwise the answer is 408."""
    keep_alive: Annotated[int, Field(ge=0)] = 5
    """Seconds for which an idle connection stays open. Set this above the idle timeout of your load
    balancer, which might otherwise send a request into a connection that is being closed."""
    max_connections: Annotated[int, Field(ge=1)] = 4000
    """Connections of one gateway process, never more than its file descriptors allow. At the limit,
    the connection that has waited longest for a request is closed."""
    max_connections_each: Annotated[int, Field(ge=1)] = 1000
    """Of these, the most from one address (IPv6: one /64). API_FORWARDED_ALLOW_IPS are exempt, as a
    proxy carries the connections of many clients."""


def _keys(setting: SecretStr | None) -> tuple[str, ...]:
    text = "" if setting is None else setting.get_secret_value()
    return tuple(key.strip() for key in text.split(",") if key.strip())


class KeySettings(BaseSettings):
    """Keys. `steno keys create` adds more; without any key the gateway listens on loopback only."""

    model_config = _config()

    gateway_api_key: SecretStr | None = None
    """A key with every scope, in every tenant; generate one with `openssl rand -hex 32`."""
    steno_api_key: SecretStr | None = None
    """The key that the `steno` commands send; unset: GATEWAY_API_KEY, if there is one."""

    secrets_key: SecretStr | None = None
    """Encrypts webhook secrets, and the keys of tenants' language models, in Postgres, and signs
    links; the same for gateways, workers and dispatchers. 32 characters at least
    (`openssl rand -hex 32`). Of several, separated by commas, the first one encrypts and signs, and
    all decrypt and check. Keep a copy: without it the secrets are lost. Unset: they are stored in
    the clear."""
    voice_key: SecretStr | None = None
    """Encrypts the embeddings of voices in Postgres, as SECRETS_KEY does secrets; the same for all
    gateways and workers. Keep a copy: without it enrolled voices are lost. Unset: embeddings are
    stored in the clear."""

    @property
    def for_secrets(self) -> tuple[str, ...]:
        """The keys in SECRETS_KEY."""
        return _keys(self.secrets_key)

    @property
    def for_voices(self) -> tuple[str, ...]:
        """The keys in VOICE_KEY."""
        return _keys(self.voice_key)

    @property
    def of_client(self) -> str | None:
        key = self.steno_api_key or self.gateway_api_key
        return None if key is None else key.get_secret_value()


class LimitSettings(BaseSettings):
    """Default limits of each key that `steno keys create` makes; 0: unlimited."""

    model_config = _config("LIMIT_")

    requests_per_second: Annotated[int, Field(ge=0)] = 50
    """Requests per second; a long poll counts once."""
    requests_per_minute: Annotated[int, Field(ge=0)] = 1200
    """Requests per minute."""
    concurrent_jobs: Annotated[int, Field(ge=0)] = 100
    """Unfinished jobs."""
    concurrent_streams: Annotated[int, Field(ge=0)] = 10
    """Concurrent live streams."""
    audio_hours_per_day: Annotated[float, Field(ge=0)] = 0
    """Hours of audio per day (UTC)."""

    @cached_property
    def limits(self) -> Limits:
        return Limits(**self.model_dump())


class CorsSettings(BaseSettings):
    """Web pages of other origins (CORS)."""

    model_config = _config("CORS_")

    origins: str = "http://localhost:5173,http://127.0.0.1:5173"
    """Origins whose pages may call this gateway, separated by commas; * for all. Cookies are not
    used: a page needs a key like any other client."""

    @cached_property
    def allowed(self) -> tuple[str, ...]:
        return tuple(each.strip().rstrip("/") for each in self.origins.split(",") if each.strip())


class EventSettings(BaseSettings):
    """Live progress (server-sent events)."""

    model_config = _config("EVENTS_")

    max_watchers: Annotated[int, Field(ge=1)] = 2000
    """Concurrent watchers of one gateway process; the next one is answered 503."""
    max_watchers_each: Annotated[int, Field(ge=1)] = 1000
    """Of these, the most of one tenant; requests that wait at OpenAI's routes count as well."""
    heartbeat: Annotated[float, Field(gt=0, le=60)] = 15.0
    """Seconds without an event after which a comment is sent, to keep the connection alive."""


class StreamSettings(BaseSettings):
    """Live streams (WS /ws/transcribe, POST /asr/stream), decoded beside each gateway process."""

    model_config = _config("STREAM_")

    engine: Literal["faster-whisper", "zipformer"] = "faster-whisper"
    """Engine of streams that name no model."""
    model: str = "base"
    """Model of streams that name none."""
    max_whisper: Annotated[int, Field(ge=0, le=1000)] = 2
    """Concurrent streams of faster-whisper on one gateway process; 0: none. Two cores keep up with
    two (base); measure yours with `steno bench stream`. The next stream is rejected."""
    max_zipformer: Annotated[int, Field(ge=0, le=1000)] = 10
    """Concurrent streams of zipformer; 0: none. Two cores keep up with 12 (70 MB model)."""
    threads: Annotated[int, Field(ge=1, le=256)] = 2
    """Threads of a recognizer process, which all streams of an engine share."""
    max_models: Annotated[int, Field(ge=1, le=100)] = 2
    """Models in memory at once; an unused one is unloaded for another."""
    unload_after: Annotated[float, Field(ge=0)] = 900.0
    """Seconds after which an unused model is unloaded."""
    preload: bool = False
    """Load STREAM_MODEL at the start, so that the first stream does not wait for it. The gateway is
    not ready before it is loaded."""
    idle: Annotated[float, Field(gt=0)] = 60.0
    """Seconds without audio and without KeepAlive after which a stream is closed. Time in which its
    model is loaded does not count."""
    patience: Annotated[float, Field(gt=0)] = 60.0
    """Seconds for which audio may arrive faster than it is decoded, without a break; then a
    WebSocket is closed. POST /asr/stream is read as fast as it is decoded."""
    max_hours: Annotated[float, Field(gt=0, le=500)] = 4.0
    """Longest stream, in hours of audio."""

    def limit_of(self, engine: str) -> int:
        """The largest number of concurrent streams of ``engine``."""
        return self.max_zipformer if engine == "zipformer" else self.max_whisper


class OpenAiSettings(BaseSettings):
    """The API that OpenAI's clients speak (/v1)."""

    model_config = _config("OPENAI_")

    wait: Annotated[float, Field(gt=0)] = 600.0
    """Seconds a request may wait for its text; then it is answered 504, and the job continues."""


class UploadSettings(BaseSettings):
    """Uploads."""

    model_config = _config()

    max_upload_size_mb: Annotated[int, Field(ge=1)] = 2048
    """Largest recording, in MB (1,000,000 bytes); a larger upload is aborted with 413."""
    max_audio_hours: Annotated[float, Field(gt=0, le=500)] = 24.0
    """Longest recording, in hours. Also checked while decoding, whatever the file's header says: a
    small file can decode to days of audio, which would fill the storage. The job is then FAILED."""

    @property
    def max_bytes(self) -> int:
        return self.max_upload_size_mb * 1_000_000


class StorageSettings(BaseSettings):
    """Files. Gateways and workers must share one UPLOAD_DIR, or one bucket."""

    model_config = _config()

    storage_backend: Literal["local", "s3"] = "local"
    """local: the folders below. s3: a bucket, and of the folders only DATA_DIR and TEMP_DIR."""
    data_dir: Path = HOME / "data"
    """Folder of the embedded servers, and of the folders below that are not set."""
    upload_dir: Path | None = None
    """Recordings and the audio of their chunks (DATA_DIR/uploads)."""
    results_dir: Path | None = None
    """Finished transcripts in every format, one folder a job (DATA_DIR/results)."""
    temp_dir: Path | None = None
    """Uploads in progress (UPLOAD_DIR/.incoming); for local on the file system of UPLOAD_DIR."""
    data_group: str | None = None
    """Group, by name or number, whose members may read, add and remove files in these folders, for
    processes of other users that share them. Unset: only the service's own user may."""
    min_free_mb: Annotated[int, Field(ge=0)] = 200
    """Free space, in MB, below which TEMP_DIR counts as full: uploads are answered 503, and the
    gateway is not ready. The remaining space is for jobs that were accepted."""
    s3_bucket: str | None = None
    """Bucket for recordings, the audio of their chunks, and results; it must exist."""
    s3_prefix: str = ""
    """Prefix of all object names, such as steno/."""
    s3_endpoint_url: str | None = None
    """URL of the server, such as http://minio:9000; unset: AWS."""
    s3_region: str | None = None
    """Region; unset: as the AWS libraries find it, otherwise us-east-1."""
    s3_access_key_id: str | None = None
    """Access key; unset, with the secret: as the AWS libraries find it (role, profile, ...)."""
    s3_secret_access_key: SecretStr | None = None
    """Secret of the access key."""
    s3_addressing_style: Literal["auto", "path", "virtual"] = "auto"
    """Where the bucket's name is in URLs: path for most servers other than AWS."""
    s3_public_url: str | None = None
    """URL at which clients reach the server, for links; unset: S3_ENDPOINT_URL."""
    s3_links: bool = True
    """Answer downloads of recordings with a link; false: the gateway passes the recording on, so
    that clients need not reach the server."""
    s3_link_seconds: Annotated[int, Field(ge=10, le=604_800)] = 900
    """Seconds for which a link to a recording is valid."""

    @property
    def min_free_bytes(self) -> int:
        return self.min_free_mb * 1_000_000

    @cached_property
    def access(self) -> FileAccess:
        """The permissions of stored files.

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
                remedy="Use a group of /etc/group, or its number",
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
    """Postgres, the source of truth."""

    model_config = _config("DATABASE_")

    url: SecretStr | None = None
    """postgresql://user:password@host:port/name; unset: `steno up` starts an embedded Postgres."""
    password: SecretStr | None = None
    """Password, if DATABASE_URL has none."""
    pool_size: Annotated[int, Field(ge=1, le=200)] = 10
    """Largest number of connections of a process."""

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
        # libpq is stricter than SQLAlchemy, and its errors repeat what it cannot parse.
        return f"{user}:{quote(password, safe='')}@{url[login.end() :]}"


class RedisSettings(BaseSettings):
    """Redis, for notifications only."""

    model_config = _config("REDIS_")

    url: SecretStr | None = None
    """redis://[:password@]host:port/db; overrides the four below. Neither: an embedded Valkey."""
    host: str | None = None
    """Host, if REDIS_URL is unset."""
    port: Annotated[int, Field(ge=1, le=65_535)] = 6379
    """Port, if REDIS_URL is unset."""
    db: Annotated[int, Field(ge=0)] = 0
    """Database number, if REDIS_URL is unset."""
    password: SecretStr | None = None
    """Password, if REDIS_URL is unset."""

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


def _model_table(text: str) -> str:
    for language, names in parse_table(text).items():
        if language != ANY_LANGUAGE and language not in LANGUAGES:
            raise ValueError(f"must have Whisper codes as languages; got {language!r}")
        # The models for all other languages also detect the language, which sherpa-onnx's do not.
        allowed = WHISPER_ENGINES if language == ANY_LANGUAGE else BATCH_ENGINES
        for name in names:
            if name.engine not in allowed:
                known = ", ".join(allowed)
                raise ValueError(f"must have engines among {known} for {language}; got {name}")
    return text


class AsrSettings(BaseSettings):
    """Speech recognition."""

    model_config = _config()

    default_engine: Literal["faster-whisper", "whisper.cpp", "sherpa-onnx"] = "faster-whisper"
    """Engine of models that are named without one, in a request or in DEFAULT_MODEL."""
    default_model: Annotated[
        str,
        Field(validation_alias=AliasChoices("default_model", "asr_model_name")),
    ] = "auto"
    """Model of jobs that name none (also ASR_MODEL_NAME); `steno models list` shows all. auto: the
    best one for the language, see MODEL_FOR."""
    default_language: Annotated[
        str,
        Field(validation_alias=AliasChoices("default_language", "asr_language")),
    ] = "vi"
    """Language of jobs that name none (also ASR_LANGUAGE): a Whisper code, or auto."""
    model_for: Annotated[str, AfterValidator(_model_table)] = (
        "vi = sherpa-onnx/vi-68m, faster-whisper/phowhisper-small, faster-whisper/small, "
        "faster-whisper/base; en = faster-whisper/small, faster-whisper/base; "
        "* = faster-whisper/small, faster-whisper/base"
    )
    """Models for jobs that ask for the model auto: by language, best first. The first that is
    installed or can be fetched is used."""
    auto_fetch: bool = True
    """Fetch missing models when a job needs them; false: jobs that name one are rejected, and auto
    uses the next one of its list."""
    models_dir: Path = HOME / "models"
    """Folder of the models."""
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    """Device of faster-whisper."""
    compute_type: str = "int8"
    """Number format of faster-whisper: int8 on CPU; float16 or int8_float16 on CUDA."""
    encoder: Literal["auto", "ctranslate2", "openvino"] = "auto"
    """Encoder of faster-whisper; auto: openvino where it is installed and the processor has
    bfloat16 (AMX or AVX-512). Texts differ a little: set one for all workers to prevent that."""
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    """Threads of an engine; one worker of one thread per core is fastest."""
    engines_mb: Annotated[int, Field(ge=0)] = 700
    """Size on disk, in MB, of the models that a worker may keep loaded together; for another one,
    those used least recently are unloaded. 0: it keeps one."""
    engine_idle: Annotated[float, Field(ge=0)] = 600.0
    """Seconds without work after which a worker ends its engine process to free memory; the next
    step starts a new one. 0: never."""

    @cached_property
    def models_for(self) -> Table:
        """The models of each language, from MODEL_FOR."""
        return parse_table(self.model_for)

    def models_of(self, engine: str | None, model: str | None, language: str | None) -> Names:
        """The models of a job with these options, best first; several if it asks for ``auto``."""
        model = model or self.default_model
        if model.lower() != AUTO_MODEL:
            return (ModelName(engine or self.default_engine, model),)
        names = candidates(self.models_for, language or self.default_language)
        if engine is None:
            return names
        return tuple(dict.fromkeys(ModelName(engine, name.model) for name in names))

    @property
    def default_models(self) -> Names:
        """The models of a job without options, best first."""
        return self.models_of(None, None, None)

    @field_validator("default_language")
    @classmethod
    def _is_known(cls, language: str) -> str:
        code = language.strip().lower()
        if code != AUTO and code not in LANGUAGES:
            raise ValueError(f"must be one of {AUTO}, {', '.join(LANGUAGES)}; got {language!r}")
        return code


class ChunkSettings(BaseSettings):
    """Cutting recordings into chunks."""

    model_config = _config("CHUNK_")

    strategy: Literal["vad", "silence", "fixed"] = "vad"
    """vad: by speech (Silero); silence: by energy; fixed: by time, overlapping."""
    duration: Annotated[float, Field(ge=1, le=30)] = 30.0
    """Longest window that the engine decodes at once, in seconds."""
    overlap: Annotated[float, Field(ge=0, le=10)] = 2.0
    """Seconds that neighbouring windows share where there is no silence to cut in."""
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds a step may take; transcribing may take four times the chunk's audio on top."""


class SilenceSettings(BaseSettings):
    """Silence (strategies silence and vad)."""

    model_config = _config()

    silence_threshold: Annotated[float, Field(ge=-96, le=0)] = -40.0
    """Loudness below which audio counts as silence for the strategy silence, in dBFS."""
    min_silence_duration: Annotated[int, Field(ge=10, le=10_000)] = 500
    """Shortest silence to cut in, in milliseconds."""


class ModerationSettings(BaseSettings):
    """Moderation: which segments are offensive or hateful."""

    model_config = _config()

    ai_load_models: bool = True
    """Enable moderation; false: jobs are not moderated, and POST /moderation answers 503."""
    use_onnxruntime: bool = True
    """Run the model in PHOBERT_ONNX_DIR; false: run PHOBERT_CHECKPOINT_DIR with PyTorch."""
    phobert_onnx_dir: Path = ROOT / "models" / "bert-finetuned-onnx"
    """Folder of an exported model (`steno moderation export`); a small one is bundled."""
    phobert_checkpoint_dir: Path = HOME / "models" / "phobert-hsd"
    """Folder of a fine-tuned PhoBERT, as transformers saves it; needs `pip install .[train]`."""
    moderation_labels: str | None = None
    """Labels of the model's outputs, in order, such as CLEAN,OFFENSIVE,HATE; for a model whose
    labels in config.json differ."""
    moderation_threshold_offensive: Annotated[float | None, Field(gt=0, le=1)] = None
    """Lowest score at which a text is OFFENSIVE; unset: the model's own."""
    moderation_threshold_hate: Annotated[float | None, Field(gt=0, le=1)] = None
    """Lowest score at which a text is HATE; unset: the model's own."""


class JobSettings(BaseSettings):
    """Retries, limits and retention of jobs."""

    model_config = _config()

    max_retries: Annotated[int, Field(ge=0, le=100)] = 3
    """Retries of a step after transient failures."""
    retry_delay: Annotated[float, Field(ge=0)] = 2.0
    """Seconds before the first retry; doubled each time, up to a minute."""
    job_timeout: Annotated[float, Field(ge=0)] = 0.0
    """Seconds a job may be PROCESSING before it is FAILED; 0: no limit."""
    reuse_results: bool = True
    """Reuse the text of a chunk that was transcribed before: same audio, model and options."""
    upload_wait: Annotated[float, Field(gt=0)] = 86_400.0
    """Seconds a job in PENDING_UPLOAD waits for its recording before it is CANCELLED."""
    review_timeout: Annotated[float, Field(ge=0, le=315_360_000)] = 0.0
    """Seconds a job waits in REVIEW; then it is COMPLETED with the warning review_timed_out. 0: it
    waits until a person approves it."""
    delete_after: Annotated[int, Field(ge=0, le=315_360_000)] = 0
    """Seconds after its end at which a job is deleted with its recording and text; 0: never. A
    tenant (`steno tenants set`) or a job may override it."""


class WorkerSettings(BaseSettings):
    """Workers."""

    model_config = _config("WORKER_")

    lease: Annotated[float, Field(ge=2)] = 15.0
    """Seconds after which the step of a lost worker is rescued: another worker may take it."""
    stop_period: Annotated[float, Field(ge=0, le=86_400)] = 25.0
    """Seconds a worker may take to finish its step after SIGTERM. Then, or on a second SIGTERM, it
    hands the step to another worker at once. Supervisors must wait 10 s longer before they kill."""
    nice: Annotated[int, Field(ge=0, le=19)] = 10
    """Niceness of workers, so that a gateway on the same machine answers at once while every core
    transcribes."""
    max_growth_mb: Annotated[int, Field(ge=0)] = 600
    """The engine process is replaced, between two steps, once it has grown by so many MB since its
    model was loaded."""
    max_steps: Annotated[int, Field(ge=1)] = 1000
    """The engine process is replaced after this many steps."""


class EgressSettings(BaseSettings):
    """URLs from clients (recordings, webhooks). Public addresses are allowed, and these."""

    model_config = _config("EGRESS_")

    allow: str = ""
    """Networks and hosts that are allowed although they are not public, separated by commas:
    10.1.0.0/16, minio.internal, .example.lan."""


class FetchSettings(BaseSettings):
    """Recordings by URL. MAX_UPLOAD_SIZE_MB applies to them too."""

    model_config = _config("FETCH_")

    timeout: Annotated[float, Field(gt=0)] = 1800.0
    """Seconds a download may take, all attempts included."""
    stall: Annotated[float, Field(gt=0)] = 30.0
    """Seconds without data after which an attempt is given up."""
    tries: Annotated[int, Field(ge=1, le=100)] = 5
    """Maximum consecutive resume attempts without progress."""


class WebhookSettings(BaseSettings):
    """Webhooks: messages to clients' URLs when their jobs end."""

    model_config = _config("WEBHOOK_")

    timeout: Annotated[float, Field(gt=0)] = 15.0
    """Seconds within which a receiver must answer, connecting included."""
    retry_delays: str = "30,120,600,3600"
    """Seconds from each failed attempt to the next, each varied by up to 20 %. The first attempt is
    made at once; after the last one the message is given up."""
    pause_after: Annotated[int, Field(ge=1)] = 10
    """An endpoint is paused after so many given-up messages in a row."""
    at_once: Annotated[int, Field(ge=1, le=1000)] = 20
    """Concurrent deliveries of a dispatcher."""
    at_once_each: Annotated[int, Field(ge=1, le=1000)] = 4
    """Of these, the most to one host for one tenant."""
    max_endpoints: Annotated[int, Field(ge=1)] = 20
    """Largest number of endpoints of a tenant."""
    keep_days: Annotated[int, Field(ge=1)] = 30
    """Days for which the delivery log is kept, and messages wait for a paused endpoint."""

    @property
    def delays_s(self) -> tuple[float, ...]:
        return tuple(float(part) for part in self.retry_delays.split(",") if part.strip())

    @field_validator("retry_delays")
    @classmethod
    def _are_numbers(cls, text: str) -> str:
        if any(float(part) < 0 for part in text.split(",") if part.strip()):
            raise ValueError("must be seconds of 0 or more, separated by commas")
        return text


ContextTokens = Annotated[int, Field(ge=2048, le=10_000_000)]
AnswerTokens = Annotated[int, Field(ge=1024, le=1_000_000)]


class EnhancedAiSettings(BaseSettings):
    """The second AI step (/enhanced-ai): any server with the chat completions of OpenAI's API."""

    model_config = _config("ENHANCED_AI_")

    base_url: PublicUrl | None = None
    """URL of the server's API, such as http://ollama:11434/v1; unset: there is no second AI step,
    but for tenants with servers of their own. Its host is allowed even if it is not public."""
    api_key: SecretStr | None = None
    """Key of that server, if it wants one."""
    model: str | None = None
    """Model, as the server names it."""
    context_tokens: ContextTokens = 8192
    """Context of the model, in tokens, question and answer together: longer transcripts are split.
    The server must allow as many; Ollama's default is lower (OLLAMA_CONTEXT_LENGTH)."""
    max_output_tokens: AnswerTokens = 4096
    """Longest answer to one request, in tokens."""
    concurrency: Annotated[int, Field(ge=1, le=1000)] = 2
    """Concurrent requests of all workers to one server: this one, and each tenant's own. At most
    half of the workers ask tenants' own servers at a time."""
    timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds an answer may take. Once its text has begun, 60 s without more of it are an error."""


class MetricsSettings(BaseSettings):
    """Metrics for Prometheus (GET /metrics)."""

    model_config = _config("METRICS_")

    open: bool = False
    """Answer without a key. Metrics contain counts and times, but no tenant's name and no job."""


class LogSettings(BaseSettings):
    """Logs. They contain ids, never text."""

    model_config = _config("LOG_")

    level: Literal["TRACE", "DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Lowest level that is logged."""
    file: Path | None = None
    """Log file, rotated at 20 MB, five kept; unset: standard error."""
    as_json: Annotated[bool, Field(validation_alias=AliasChoices("log_json"))] = False
    """Write one JSON object a line, with the ids of request, job and step as fields."""


class Settings(BaseModel):
    """All settings."""

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
    enhanced_ai: EnhancedAiSettings = Field(default_factory=EnhancedAiSettings)
    metrics: MetricsSettings = Field(default_factory=MetricsSettings)
    log: LogSettings = Field(default_factory=LogSettings)


def import_from_checkout() -> dict[str, str]:
    """The environment in which ``python -m`` finds these packages from any working directory."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1"}


def load_settings() -> Settings:
    """All settings, from the environment, `.env` and the folders of secrets.

    Raises:
        SetupProblem: a setting is wrong (it is named), or `.env` cannot be read.
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
            remedy="Change it in the environment or in .env; .env.example lists all settings",
        ) from error
    except PermissionError as error:
        raise SetupProblem(
            problem=f"{error.filename} cannot be read by user {os.geteuid()}",
            remedy="Make it readable by the user or a group of this process; with Compose, run "
            "`sh docker/secrets.sh`",
        ) from error
