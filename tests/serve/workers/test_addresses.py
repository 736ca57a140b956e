"""Which addresses a controller takes: this machine's, or those of its allow-list, in one plain form."""

from __future__ import annotations

import pytest
from fake_worker import status

from llava.serve.controller import Controller
from llava.serve.workers.addresses import WorkerAddressError, WorkerAddresses
from llava.utils import UserError


@pytest.mark.parametrize(
    "address",
    [
        "http://169.254.169.254",
        "http://169.254.169.254/latest/meta-data",
        "http://[fe80::1]:80",
        "http://[::ffff:169.254.169.254]:80",
        "http://10.0.0.1:21002",
        "http://worker.example.org:21002",
        "http://localhost:21002@10.0.0.1",
        "http://127.0.0.1\\@10.0.0.1",
        "http://user:word@localhost:21002",
        "http://localhost.example.org",
        "http://127.0.0.1.example.org",
        "http://2130706433",
        "http://0x7f000001",
        "http://0177.0.0.1",
        "http://127.1",
        "http://127.0.0.1:99999",
        "http://localhost:21002/path",
        "http://localhost:21002?x=1",
        "http://localhost:21002#x",
        "http://loc\nalhost",
        "http://löcalhost",
        "http://",
        "file:///etc/passwd",
        "ftp://localhost",
        "localhost:21002",
        "",
        "http://" + "a" * 400,
    ],
)
def test_a_worker_elsewhere_or_with_a_unexpected_address_is_refused(
    address: str,
) -> None:
    controller = Controller("shortest_queue")
    with pytest.raises(WorkerAddressError):
        controller.register_worker(address, True, status("m"))
    assert controller.worker_info == {} and not controller.receive_heart_beat(address, 0)
    controller.close()


@pytest.mark.parametrize(
    ("allowed", "address", "passes"),
    [
        ((), "http://localhost:21002", True),
        ((), "http://127.0.0.1:1", True),
        ((), "http://127.9.9.9:1", True),
        ((), "http://[::1]:1", True),
        ((), "https://LOCALHOST/", True),
        (("10.0.0.0/8",), "http://10.1.2.3:21002", True),
        (("10.0.0.0/8",), "http://11.1.2.3:21002", False),
        (("10.0.0.0/8",), "http://localhost:21002", False),
        (("127.0.0.1",), "http://localhost:21002", True),
        (("gpu1",), "http://gpu1:21002", True),
        (("gpu1",), "http://GPU1:21002", True),
        (("gpu1",), "http://gpu11:21002", False),
        (("*.example.org",), "http://a.example.org", True),
        (("*.example.org",), "http://example.org", False),
        (("*.example.org",), "http://badexample.org", False),
        (("2001:db8::/32",), "http://[2001:db8::1]:1", True),
        (("2001:db8::/32",), "http://[2001:db9::1]:1", False),
    ],
)
def test_the_allow_list(allowed: tuple[str, ...], address: str, passes: bool) -> None:
    addresses = WorkerAddresses(allowed)
    if passes:
        assert addresses.check(address) == address.lower().rstrip("/")
    else:
        with pytest.raises(WorkerAddressError, match="not allowed here"):
            addresses.check(address)


@pytest.mark.parametrize("entry", ["http://gpu1", "gpu1:21002", "10.0.0.1/99", "", "a b", "127.1", "*"])
def test_a_malformed_entry_of_the_allow_list_is_named(entry: str) -> None:
    with pytest.raises(UserError, match="--allow-worker"):
        WorkerAddresses([entry])
