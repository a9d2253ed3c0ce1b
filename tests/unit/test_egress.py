"""Which addresses that clients name are connected to, and which are not."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from itertools import cycle
from typing import Self

import httpcore
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import SetupProblem, UrlRefused
from common.net.egress import Egress, Outbound, headers_of, is_public, parse_url

PUBLIC = "93.184.216.34"


def nowhere(host: str, _port: int) -> list[str]:
    raise socket.gaierror(f"{host} is not known")


EGRESS = Egress(resolve=nowhere)


TRICKS = [
    *(
        f"http://{host}/"
        for host in (
            # loopback
            *("127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "017700000001"),
            *("0177.0.0.1", "0.0.0.0", "0", "127。0。0。1", "①②⑦.0.0.1", "127.0.0.1."),  # noqa: S104
            *("127.0.0.1:80", "%31%32%37.0.0.1", "[::1]", "[::]", "[::ffff:127.0.0.1]"),
            *("[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]"),
            "[2001:0:7f00:1::]",
            # private, link-local, multicast, and where clouds have their metadata
            *("[fe80::1]", "[fe80::1%25eth0]", "[fec0::1]", "[ff02::1]", "100.100.100.200"),
            *("168.63.129.16", "192.0.0.192", "10.0.0.1", "172.31.255.255", "192.168.1.1"),
            *("100.64.0.1", "198.18.0.1", "224.0.0.1", "255.255.255.255"),
            # a user, a port or letters that lead elsewhere
            *("public.example@127.0.0.1", "127.0.0.1@public.example", "@public.example"),
            *("user:secret@public.example", "public.example\\@127.0.0.1", "public.example:0"),
            *("127.0.0.1\\.public.example", "127.0.0.1\t", "public.example ", "xn--"),
            *("public.example%00.evil", "public.example:99999999", "xn--ls8h.example"),
            "a" * 2_000 + ".example",
        )
    ),
    *("http://[fd00:ec2::254]/latest/meta-data/", "http://169.254.169.254/latest/meta-data/"),
    *("http://2852039166/latest/meta-data/", "http:///etc/passwd", "http:public.example"),
    *("//public.example/", "file:///etc/passwd", "gopher://public.example/"),
    *("ftp://public.example/a.mp3", "jar:http://public.example/!/", ""),
]


@pytest.mark.parametrize("url", TRICKS)
def test_a_url_that_hides_where_it_leads_is_rejected(url: str) -> None:
    for egress in (EGRESS, Egress()):
        with pytest.raises(UrlRefused):
            asyncio.run(egress.check(url))


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["::1"],
        ["10.0.0.7"],
        ["::ffff:10.0.0.7"],
        ["169.254.169.254"],
        [PUBLIC, "10.0.0.7"],
        ["10.0.0.7", PUBLIC],
        ["fe80::1%eth0"],
    ],
)
def test_a_name_is_validated_by_every_address_it_has(addresses: list[str]) -> None:
    egress = Egress(resolve=lambda _host, _port: addresses)
    with pytest.raises(UrlRefused, match=r"inside\.example leads to an address that is not public"):
        asyncio.run(egress.check("https://inside.example/"))
    with pytest.raises(UrlRefused):
        asyncio.run(egress.addresses("inside.example", 443))


@pytest.mark.parametrize(
    "url",
    [
        "https://public.example/a.mp3?X-Signature=a%2Bb&who=me@home#t=1",
        "HTTP://Public.Example:8080/",
        "https://bücher.example/é",
        f"http://{PUBLIC}/",
        "http://[2606:4700::6810:85e5]/",
        "http://[64:ff9b::5db8:d822]/",
    ],
)
def test_a_public_url_may_be_kept(url: str) -> None:
    asyncio.run(Egress(resolve=lambda _host, _port: [PUBLIC]).check(url))


def test_a_name_that_cannot_be_looked_up_now_may_be_kept_and_is_validated_when_used() -> None:
    asyncio.run(EGRESS.check("https://soon.example/"))
    with pytest.raises(OSError, match="not known"):
        asyncio.run(EGRESS.addresses("soon.example", 443))


def test_what_is_rejected_is_named_without_the_secrets_of_its_url() -> None:
    egress = Egress(resolve=lambda _host, _port: ["127.0.0.1"])
    with pytest.raises(UrlRefused) as caught:
        asyncio.run(egress.check("https://inside.example/a?token=hush", "webhook_url"))
    reason = "inside.example leads to an address that is not public"
    assert str(caught.value) == f"webhook_url is rejected: {reason}"
    assert "hush" not in str(caught.value.details)


@given(st.ip_addresses())
def test_what_counts_as_public_is_public_to_python_too(address: IPv4Address | IPv6Address) -> None:
    if is_public(address):
        plain = getattr(address, "ipv4_mapped", None) or address
        assert plain.is_global or plain in IPv6Network("64:ff9b::/96")
        assert not plain.is_multicast


@given(st.ip_addresses(v=4))
def test_an_address_is_validated_alike_in_all_its_disguises(address: IPv4Address) -> None:
    number = int(address)
    for disguised in (0xFFFF << 32 | number, 0x64FF9B << 96 | number):
        assert is_public(IPv6Address(disguised)) == is_public(address)


@given(st.ip_addresses(v=4))
def test_an_address_is_validated_alike_however_it_is_spelled(address: IPv4Address) -> None:
    number = int(address)
    a, rest = number >> 24, number & 0xFFFFFF
    spellings = [str(address), str(number), hex(number), f"0{number:o}", f"{a}.{rest}"]
    allowed = {_passes(f"http://{spelling}/") for spelling in spellings}
    assert allowed == {is_public(address)}


def _passes(url: str) -> bool:
    try:
        asyncio.run(EGRESS.check(url))
    except UrlRefused:
        return False
    return True


LABELS = st.one_of(
    st.text(max_size=8),
    st.text(st.characters(categories=["Nd", "Mn", "Cf"]), max_size=4),
    st.sampled_from(["xn--", "xn--a", "xn--ls8h", "a" * 64, "public", "example", "127", "0x7f"]),
    st.sampled_from(["[::1]", "[fe80::1%25eth0]", "[fe80::1%eth0]", "[v1.x]", "[", "%31", ""]),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
)
URLS = st.builds(
    "{}{}{}{}{}".format,
    st.sampled_from(["http://", "https://", "HTTP://", "http:", "//", ""]),
    st.sampled_from(["", "", "@", "me@", "me:secret@"]) | st.text(max_size=4),
    st.lists(LABELS, max_size=3).map(".".join),
    st.just("") | st.integers().map(":{}".format) | st.text(max_size=4).map(":{}".format),
    st.text(st.characters(), max_size=8).map("/{}".format),
)


TEXTS = st.text(max_size=60)


@settings(max_examples=1_000)
@given(URLS | TEXTS | TEXTS.map("http://{}".format) | TEXTS.map("https://public.example/{}".format))
def test_any_text_is_either_rejected_or_one_url_with_a_host(text: str) -> None:
    try:
        url = parse_url(text)
    except UrlRefused:
        assert not _passes(text)
        return
    assert url.scheme in {"http", "https"}
    assert url.host
    assert not url.userinfo
    if _passes(text):
        with contextlib.suppress(UrlRefused, OSError):
            asyncio.run(EGRESS.addresses(url.raw_host.decode(), url.port or 80))


# --- the allow list ---------------------------------------------------------------------------


def test_what_is_allowed_is_reached_though_private_and_nothing_beside_it() -> None:
    inside = {"minio.internal": "10.9.0.1", "a.lan": "10.9.0.2", "lan": "10.9.0.3"}
    egress = Egress(
        "192.168.7.0/24, minio.internal, .lan, fd12::/16",
        resolve=lambda host, _port: [inside.get(host.rstrip("."), host.strip("[]"))],
    )
    for allowed in ("192.168.7.9", "minio.internal", "MINIO.internal.", "a.lan", "[fd12::5]"):
        asyncio.run(egress.check(f"http://{allowed}/"))
    asyncio.run(egress.check("http://[::ffff:192.168.7.9]/"))
    for rejected in ("192.168.8.9", "lan", "127.0.0.1", "[fd13::5]"):
        with pytest.raises(UrlRefused):
            asyncio.run(egress.check(f"http://{rejected}/"))


@pytest.mark.parametrize("entry", ["10.0.0.0/33", "10.0.0", "http://minio", "a b", "min*"])
def test_an_allow_list_that_means_nothing_is_rejected_at_the_start(entry: str) -> None:
    with pytest.raises(SetupProblem, match="EGRESS_ALLOW"):
        Egress(entry)


# --- connections, over real sockets -------------------------------------------------------------


@dataclass(frozen=True)
class Certified:
    """A server's context, of one who is called ``name``, and that of a client who trusts it."""

    server: ssl.SSLContext | None
    client: ssl.SSLContext | None


class Server:
    """Answers every connection with 204; counts them."""

    def __init__(self, address: str, tls: ssl.SSLContext | None = None) -> None:
        self.connections = 0
        self._tls = tls
        self.requests: list[bytes] = []
        self._address = address

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, self._address, 0, ssl=self._tls)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        writer.close()


async def _status(outbound: Outbound, url: str) -> int:
    async with outbound.send("GET", parse_url(url), {}) as response:
        return response.status


def test_a_dns_that_changes_between_two_looks_finds_no_gap() -> None:
    """Every second answer is the loopback of a victim; the allowed one stands for the public."""
    answers = cycle([["127.0.0.2"], ["127.0.0.1"]])
    asked: list[str] = []

    def rebinding(host: str, _port: int) -> list[str]:
        asked.append(host)
        return next(answers)

    async def attack() -> tuple[int, int, int]:
        egress = Egress("127.0.0.2", resolve=rebinding)
        rejected = 0
        async with Server("127.0.0.1") as victim, Outbound(egress, timeout_s=5) as outbound:
            async with Server("127.0.0.2") as public:
                # one port for both, so that only the address makes the difference
                url = f"http://rebinding.example:{victim.port}/"
                for _ in range(6):
                    try:
                        await _status(outbound, url)
                    except UrlRefused:
                        rejected += 1
                    except httpcore.ConnectError:  # nobody listens at the public address's port
                        assert victim.port != public.port
            return victim.connections, rejected, len(asked)

    connections, rejected, looked_up = asyncio.run(attack())
    assert connections == 0
    assert rejected == 3
    assert looked_up == 6  # once for each request


def ask(egress: Egress, host: str, certified: Certified | None = None) -> tuple[int, bytes]:
    """A server at 127.0.0.2 is asked by that name; returns its answer's status, and the request."""

    async def connect() -> tuple[int, bytes]:
        scheme, tls = ("https", certified) if certified else ("http", Certified(None, None))
        async with (
            Server("127.0.0.2", tls.server) as server,
            Outbound(egress, timeout_s=5, tls=tls.client) as outbound,
        ):
            status = await _status(outbound, f"{scheme}://{host}:{server.port}/a?b=c")
            return status, server.requests[0]

    return asyncio.run(connect())


NAMED = Egress("127.0.0.2", resolve=lambda _host, _port: ["127.0.0.2"])


def test_a_connection_goes_to_the_validated_address_and_asks_for_the_name() -> None:
    status, request = ask(NAMED, "name.example")
    assert status == 204
    assert request.startswith(b"GET /a?b=c HTTP/1.1\r\nHost: name.example:")


def test_the_second_address_of_a_name_is_tried_when_the_first_is_dead() -> None:
    egress = Egress("127.0.0.0/8", resolve=lambda _host, _port: ["127.0.0.3", "127.0.0.2"])
    assert ask(egress, "name.example")[0] == 204


def test_the_environments_proxies_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect() -> int:
        async with Server("127.0.0.1") as proxy, Server("127.0.0.2") as server:
            for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            async with Outbound(Egress("127.0.0.2"), timeout_s=5) as outbound:
                await _status(outbound, f"http://127.0.0.2:{server.port}/")
            return proxy.connections

    assert asyncio.run(connect()) == 0


def test_a_server_that_sends_nothing_is_given_up() -> None:
    async def connect(port: int) -> None:
        async with Outbound(Egress("127.0.0.1"), timeout_s=0.2) as outbound:
            await _status(outbound, f"http://127.0.0.1:{port}/")

    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(httpcore.ReadTimeout):
        asyncio.run(connect(silent.getsockname()[1]))


def test_a_scope_makes_no_address_public() -> None:
    assert not is_public(ip_address("2606:4700::1%eth0"))


# --- TLS ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Certified:
    """A certificate for name.example, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "name.example")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("name.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path_factory.mktemp("tls") / "both.pem"
    pem.write_bytes(
        certificate.public_bytes(Encoding.PEM)
        + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(pem)
    return Certified(server, ssl.create_default_context(cafile=str(pem)))


@pytest.mark.parametrize(("asked", "answered"), [("name.example", True), ("other.example", False)])
def test_a_certificate_is_held_to_the_name_and_not_to_the_address(
    certified: Certified, asked: str, *, answered: bool
) -> None:
    if answered:
        assert ask(NAMED, asked, certified)[0] == 204
    else:
        with pytest.raises(httpcore.ConnectError, match="certificate verify failed"):
            ask(NAMED, asked, certified)


def test_of_a_repeated_header_the_last_value_counts() -> None:
    sent = [
        (b"Location", b"/first"),
        (b"location", b"/last"),
        (b"X-Name", "b\xe9".encode("latin-1")),
    ]
    headers = headers_of(httpcore.Response(302, headers=sent))
    assert (headers["location"], headers["x-name"]) == ("/last", "b\xe9")


@pytest.mark.parametrize(
    ("url", "chosen"),
    [
        ("http://gpu1:11434/v1", "gpu1"),
        ("http://GPU1./v1", "gpu1"),
        ("http://10.0.0.7/v1", "10.0.0.7"),
        ("http://[fd00::7]/v1", "fd00::7"),
    ],
)
def test_a_host_that_the_operator_chose_is_allowed_and_no_other(url: str, chosen: str) -> None:
    egress = Egress(chosen=chosen, resolve=lambda _host, _port: ["10.0.0.7"])
    asyncio.run(egress.check(url))
    for other in ("http://gpu2/", "http://10.0.0.8/", "http://gpu1.example/", "http://[fd00::8]/"):
        with pytest.raises(UrlRefused):
            asyncio.run(egress.check(other))
