"""To whom webhooks are sent, and above all to whom not."""

from __future__ import annotations

import json
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from flask_llmstream import targets
from flask_llmstream.errors import WebhookFailed, WebhookRefused
from flask_llmstream.targets import AllowedHosts, Target, is_public
from tests.webhooks.receiver import (
    receiver,
    send,
    status,
)

NOT_PUBLIC = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1",
    "64:ff9b::10.0.0.1",
    "64:ff9b:1::8.8.8.8",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:808:808::",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
]
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "223.255.255.255",
    "2606:4700:4700::1111",
    "2a00:1450::1",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
]


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_nothing_is_sent_to_an_address_that_is_not_public(names, address):
    names.has("hooks.example", [address])
    with pytest.raises(WebhookRefused) as refused:
        send("https://hooks.example/", allowed_hosts=[])
    assert refused.value.reason == "address"
    assert not refused.value.retryable
    problem = json.dumps(refused.value.problem())
    found = refused.value.diagnosis.removeprefix("hooks.example is at ")
    assert ip_address(found) == ip_address(address)
    assert found not in problem


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is_public(names, address):
    names.has("hooks.example", [address])
    assert is_public(address)
    [found] = Target.of("https://hooks.example").addresses(AllowedHosts())
    assert ip_address(found) == ip_address(address)


def is_special(address: IPv4Address | IPv6Address) -> bool:
    """As the standard library has it."""
    return (
        address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_reserved
        or address.is_unspecified
        or not address.is_global
    )


@given(st.ip_addresses())
def test_no_special_address_is_public(address):
    assume(targets._without_wrapping(address) == address)
    assert not (is_public(str(address)) and is_special(address))


@given(st.ip_addresses(v=4))
def test_an_address_within_another_is_no_more_public_than_by_itself(address):
    assert is_public(f"::ffff:{address}") == is_public(f"64:ff9b::{address}") == is_public(str(address))
    assert not is_public(str(IPv6Address((0x2002 << 112) | (int(address) << 80) | 1)))
    assert not is_public(f"::{address}")


@given(st.ip_addresses(v=6))
def test_of_ipv6_only_what_is_given_to_networks_is_public(address):
    assert not is_public(str(address)) or (int(address) >> 125 == 1 or address.ipv4_mapped or address in targets.NAT64)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "0x7f.1", "2130706433", "017700000001", "localhost", "[::1]"])
def test_our_own_machine_under_whatever_name(host):
    with receiver() as server:
        with pytest.raises(WebhookRefused) as refused:
            send(f"https://{host}:{server.port}/", allowed_hosts=[])
        assert refused.value.reason == "address"
        assert server.requests == []


@pytest.mark.parametrize("addresses", [["8.8.8.8", "10.0.0.1"], ["10.0.0.1", "8.8.8.8"], ["8.8.8.8", "::1"]])
def test_one_address_that_is_not_public_is_enough(names, addresses):
    names.has("hooks.example", addresses)
    with pytest.raises(WebhookRefused) as refused:
        send("https://hooks.example", allowed_hosts=[])
    assert refused.value.reason == "address"


def test_a_name_that_changes_its_address_between_check_and_connection(names):
    """DNS rebinding: the address that was checked is the one that is connected to."""
    with receiver() as checked, receiver(host="127.0.0.2", port=checked.port) as other:
        names.has("moving.example", ["127.0.0.1"], ["127.0.0.2"])
        url = f"http://moving.example:{checked.port}"
        send(url, allowed_hosts=["127.0.0.1"])
        assert names.asked == ["moving.example"]
        assert len(checked.requests) == 1
        with pytest.raises(WebhookRefused):
            send(url, allowed_hosts=["127.0.0.1"])
        assert other.requests == []


def test_a_redirect_is_not_followed():
    with receiver() as inside:
        for line in ("301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"):
            with (
                receiver(status(line, f"Location: http://127.0.0.1:{inside.port}/")) as server,
                pytest.raises(WebhookFailed, match=line[:3]),
            ):
                send(f"http://127.0.0.1:{server.port}")
        assert inside.requests == []


def test_no_proxy_is_asked(monkeypatch):
    with receiver() as proxy, receiver() as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        send(f"http://127.0.0.1:{server.port}")
        assert (len(proxy.requests), len(server.requests)) == (0, 1)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks.example",
        "//hooks.example/",
        "https://",
        "https:///path",
        "ftp://hooks.example",
        "file:///etc/passwd",
        "unix:///run/docker.sock",
        "https://ann:secret@hooks.example",
        "https://@hooks.example",
        "https://hooks.example:99999",
        "https://hooks.example:port",
        "https://[::1",
        "https://[fe80::1%25eth0]/",
        "https://hooks.example\\@127.0.0.1/",
        "https://hooks.example/\r\nX: y",
        " https://hooks.example",
        "https://grüße.example",
        "https://hooks..example",
        f"https://{'a' * 64}.example",
        f"https://{'a.' * 130}example",
        "https://-",
    ],
)
def test_a_url_that_nothing_is_sent_to(names, url):
    names.has("-", ["127.0.0.1"])
    with pytest.raises(WebhookRefused) as refused:
        send(url, allowed_hosts=[])
    assert "secret" not in json.dumps(refused.value.problem())


@given(st.text(alphabet=st.characters(max_codepoint=0x17F)))
def test_a_url_is_understood_or_refused(rest):
    with suppress(WebhookRefused):
        target = Target.of(f"https://{rest}")
        assert targets._is_host(target.host)
        assert target.path.startswith("/")
        assert targets.PRINTABLE.fullmatch(target.path)


@pytest.mark.parametrize(
    ("url", "authority", "path"),
    [
        ("https://Hooks.Example.", "hooks.example", "/"),
        ("HTTPS://hooks.example:443/a/b?c=d#e", "hooks.example", "/a/b?c=d"),
        ("https://hooks.example:8443?c", "hooks.example:8443", "/?c"),
        ("http://hooks.example:443", "hooks.example:443", "/"),
        ("https://[2606:4700::1]:8443/", "[2606:4700::1]:8443", "/"),
    ],
)
def test_a_url_in_its_parts(url, authority, path):
    target = Target.of(url)
    assert (target.authority, target.path) == (authority, path)


@pytest.mark.parametrize(
    "allowed", ["billing.internal", "Billing.Internal.", "127.0.0.1", "127.0.0.0/8", "127.1.2.3/8", "0.0.0.0/0"]
)
def test_an_allowed_host_also_without_tls(names, allowed):
    names.has("billing.internal", ["127.0.0.1"])
    with receiver() as server:
        send(f"http://billing.internal:{server.port}/", allowed_hosts=["10.0.0.0/8", allowed])
        assert len(server.requests) == 1


@pytest.mark.parametrize("allowed", [[], ["internal"], ["other.internal"], ["127.0.0.2"], ["10.0.0.0/8", "::1"]])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_that_others_are_allowed_is_no_help(names, scheme, allowed):
    names.has("billing.internal", ["127.0.0.1"])
    with receiver() as server:
        with pytest.raises(WebhookRefused):
            send(f"{scheme}://billing.internal:{server.port}/", allowed_hosts=allowed)
        assert server.requests == []


def test_public_hosts_are_reached_over_tls_only(names):
    names.has("hooks.example", ["8.8.8.8"])
    with pytest.raises(WebhookRefused, match="https://"):
        send("http://hooks.example", allowed_hosts=["10.0.0.0/8"])


def test_an_allowed_network_holds_for_addresses_within_others_too(names):
    names.has("billing.internal", ["::ffff:127.0.0.1"])
    with receiver() as server:
        send(f"http://billing.internal:{server.port}", allowed_hosts=["127.0.0.1"])
        assert len(server.requests) == 1


@pytest.mark.parametrize("entry", ["", "10.0.0.0/33", "https://billing.internal", "*.internal", "billing.internal:80"])
def test_what_is_neither_host_nor_network(entry):
    with pytest.raises(ValueError, match="a host's name"):
        AllowedHosts([entry])
