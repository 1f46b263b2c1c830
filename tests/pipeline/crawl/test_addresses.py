"""Which addresses may be connected to, in every disguise; nothing here leaves the machine."""

import asyncio
import ipaddress
import pickle
import socket
import threading
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.crawl.addresses import AddressPolicy, is_public
from pipeline.crawl.reasons import Refused
from pipeline.crawl.resolver import Resolver
from pipeline.crawl.settings import FetchSettings
from pipeline.errors import UserError

PRIVATE = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.127.255.255",
    "127.0.0.1",
    "127.1.2.3",
    "169.254.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "192.168.255.255",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "168.63.129.16",
    "::",
    "::1",
    "::7f00:1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:a9fe:a9fe",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::808:808",
    "100::1",
    "2001::1",
    "2001:0:4136:e378::f5ff:fffe",
    "2001:db8::1",
    "2001:10::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2002:c0a8:101::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "4000::1",
    "2a00:1450:4001:800::5efe:127.0.0.1",
    "2a00:1450:4001:800:200:5efe:10.0.0.1",
    "2600::100:5efe:10.0.0.1",
    "2600::300:5efe:10.0.0.1",
]
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.1",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.167.255.255",
    "192.169.0.0",
    "223.255.255.255",
    "2606:4700:4700::1111",
    "2a00:1450:4001:800::200e",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
    "2002:808:808::1",
    "2600::400:5efe:10.0.0.1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_what_is_not_public_is_refused(address):
    assert not AddressPolicy().permits(address)
    with pytest.raises(Refused) as refused:
        AddressPolicy().require(address)
    assert refused.value.reason == "private_address" and not refused.value.again


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is_public_is_permitted(address):
    assert AddressPolicy().permits(address)


@given(st.ip_addresses())
def test_nothing_passes_that_the_standard_library_holds_back(address):
    if is_public(address):
        assert address.is_global or address in ipaddress.ip_network("64:ff9b::/96")
        assert not address.is_multicast and not address.is_link_local and not address.is_loopback


@given(st.ip_addresses(v=4))
def test_an_address_inside_of_another_counts_like_itself(address):
    inside = f"{int(address) >> 16:x}:{int(address) & 0xFFFF:x}"
    for outer in (f"::ffff:{inside}", f"64:ff9b::{inside}", f"2002:{inside}::1"):
        assert AddressPolicy().permits(outer) == is_public(address)


def test_ranges_that_the_user_names_are_permitted_and_nothing_beside_them():
    policy = AddressPolicy(["127.0.0.1/32", "10.1.0.0/16", "fd00::/8"])
    for address in ("127.0.0.1", "::ffff:127.0.0.1", "10.1.2.3", "fd12::1", "8.8.8.8"):
        assert policy.permits(address)
    for address in ("127.0.0.2", "10.2.0.1", "fe80::1", "64:ff9b::7f00:1", "169.254.169.254"):
        assert not policy.permits(address)


@pytest.mark.parametrize("text", ["", "localhost", "1.2.3", "0x7f000001", "127.1", "::g"])
def test_what_is_no_address_is_not_permitted(text):
    assert not AddressPolicy(["0.0.0.0/0", "::/0"]).permits(text)


@pytest.mark.parametrize("text", ["10.0.0/8", "10.1.2.3/8", "private", "", "10.0.0.0/33"])
def test_a_range_that_is_none_is_the_users_mistake(text):
    with pytest.raises(UserError, match="--allow-private"):
        FetchSettings(allow_private=(text,))


def test_no_socket_is_made_for_a_refused_address():
    info = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", 80))
    with pytest.raises(Refused):
        AddressPolicy().open_socket(info)
    AddressPolicy(["127.0.0.1"]).open_socket(info).close()


def resolve(names: dict, *hosts: str, allow: tuple[str, ...] = (), fixed: tuple[str, ...] = ()):
    """The addresses or the reason of each host, asked at once; and what the system was asked."""
    asked = []

    def lookup(name: str) -> list[str]:
        asked.append(name)
        found = names[name]
        if isinstance(found, BaseException):
            raise found
        return found

    async def run() -> list:
        resolver = Resolver(AddressPolicy(allow), fixed, lookup)
        found = await asyncio.gather(
            *(resolver.resolve(host, 80) for host in hosts), return_exceptions=True
        )
        await resolver.close()
        return [
            one.reason if isinstance(one, Refused) else [entry["host"] for entry in one]
            for one in found
        ]

    return asyncio.run(run()), asked


def test_a_name_keeps_its_public_addresses_only():
    names = {"both.test": ["10.0.0.1", "8.8.8.8", "::1"], "inner.test": ["192.168.1.1"]}
    found, _ = resolve(names, "both.test", "inner.test")
    assert found == [["8.8.8.8"], "private_address"]


def test_names_of_this_machine_ask_nobody():
    found, asked = resolve({}, "localhost", "a.localhost", "pc.test", fixed=("pc.test=10.0.0.1",))
    assert found == ["private_address"] * 3 and asked == []
    found, _ = resolve({}, "localhost", allow=("127.0.0.0/8",))
    assert found == [["127.0.0.1"]]


def test_one_name_is_looked_up_once_and_its_absence_is_remembered():
    missing = socket.gaierror(socket.EAI_NONAME, "no")
    names = {"a.test": ["8.8.8.8"], "none.test": missing}
    found, asked = resolve(names, *["a.test"] * 5, *["none.test"] * 5)
    assert found == [["8.8.8.8"]] * 5 + ["no_such_host"] * 5
    assert sorted(asked) == ["a.test", "none.test"]


def test_a_name_server_that_is_away_is_asked_again():
    away = socket.gaierror(socket.EAI_AGAIN, "later")
    answers = iter([away, ["8.8.8.8"]])

    def lookup(name: str) -> list[str]:
        found = next(answers)
        if isinstance(found, BaseException):
            raise found
        return found

    async def run() -> None:
        resolver = Resolver(AddressPolicy(), (), lookup)
        with pytest.raises(Refused) as refused:
            await resolver.resolve("a.test")
        assert refused.value.reason == "dns" and refused.value.again
        assert [entry["host"] for entry in await resolver.resolve("a.test")] == ["8.8.8.8"]
        await resolver.close()

    asyncio.run(run())


def test_of_a_name_with_very_many_addresses_a_few_are_kept():
    names = {"a.test": [f"8.8.{n // 256}.{n % 256}" for n in range(4000)]}
    found, _ = resolve(names, "a.test")
    assert found == [[f"8.8.0.{n}" for n in range(16)]]


class Lookups:
    """Look-ups that end when they are told to, and know which ones are under way."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._ends: dict[str, threading.Event] = defaultdict(threading.Event)

    def __call__(self, name: str) -> list[str]:
        self.begun.append(name)
        assert self._ends[name].wait(20)
        return ["8.8.8.8"]

    def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()


async def until(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def test_look_ups_that_nobody_waits_for_any_more_never_reach_a_thread():
    lookups = Lookups()

    async def run() -> None:
        resolver = Resolver(AddressPolicy(), (), lookups, threads=1)
        slow = asyncio.ensure_future(resolver.resolve("slow.test"))
        await until(lambda: lookups.begun == ["slow.test"])
        given_up = [asyncio.ensure_future(resolver.resolve(f"{n}.test")) for n in range(9)]
        stays = asyncio.ensure_future(resolver.resolve("8.test"))
        good = asyncio.ensure_future(resolver.resolve("good.test"))
        await asyncio.sleep(0.01)
        for one in (slow, *given_up):
            one.cancel()
        again = asyncio.ensure_future(resolver.resolve("slow.test"))
        lookups.end("slow.test", "8.test", "good.test")
        for one in (again, stays, good):
            assert (await one)[0]["host"] == "8.8.8.8"
        await resolver.close()

    asyncio.run(run())
    # The one that was under way was of use for who came later.
    assert lookups.begun == ["slow.test", "8.test", "good.test"]


def test_waiting_for_a_thread_is_apart_from_waiting_for_the_answer():
    lookups = Lookups()

    async def run() -> None:
        resolver = Resolver(AddressPolicy(), ("fixed.test=8.8.8.8",), lookups, threads=1)
        await resolver.admit("first.test")
        for host in ("fixed.test", "127.0.0.1", "::1", "localhost", "first.test"):
            await resolver.admit(host)
        second = asyncio.ensure_future(resolver.admit("second.test"))
        await until(lambda: lookups.begun == ["first.test"])
        assert not second.done()
        lookups.end("first.test")
        await second
        await until(lambda: lookups.begun == ["first.test", "second.test"])
        lookups.end("second.test")
        assert (await resolver.resolve("second.test"))[0]["host"] == "8.8.8.8"
        await resolver.close()

    asyncio.run(run())
    assert lookups.begun == ["first.test", "second.test"]


def test_a_thread_that_never_comes_free_is_told(monkeypatch):
    lookups = Lookups()
    monkeypatch.setattr("pipeline.crawl.resolver.MAX_WAIT_SEC", 0.01)

    async def run() -> None:
        resolver = Resolver(AddressPolicy(), (), lookups, threads=1)
        await resolver.admit("slow.test")
        with pytest.raises(Refused) as refused:
            await resolver.admit("good.test")
        assert refused.value.reason == "dns"
        await resolver.close()

    asyncio.run(run())
    lookups.end("slow.test")


def test_a_refusal_survives_its_way_to_another_process():
    sent = Refused("dns", "no", again=True, status=5, retry_after=2.0, content_type="x/y")
    got = pickle.loads(pickle.dumps(sent))
    assert vars(got) == vars(sent) and got.args == sent.args
