"""Accounts: no default, no way around, a lock-out that grows, a file that never falls open."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path

import pytest

from controller.console import accounts
from controller.console.accounts import AccountError, Accounts

GOOD = "three small words"


@pytest.fixture
def book(tmp_path: Path) -> Accounts:
    made = Accounts(tmp_path / "state")
    made.add("anna", "engineer", GOOD, first=True)
    return made


def test_a_new_site_has_no_account_and_nobody_gets_in(tmp_path: Path) -> None:
    empty = Accounts(tmp_path)
    assert empty.empty()
    for name in ("admin", "root", "engineer", "ballast", ""):
        for password in ("", "admin", "ballast", "password"):
            assert empty.log_in(name, password, "x", 0.0) is None
    assert empty.empty() and not empty.path.exists(), "failures make no accounts"


def test_the_first_account_is_made_once(book: Accounts) -> None:
    assert not book.empty()
    with pytest.raises(AccountError, match="just made the first"):
        book.add("eve", "engineer", GOOD, first=True)
    assert book.users() == {"anna": "engineer"}


def test_only_the_right_password_of_the_right_user(book: Accounts) -> None:
    book.add("ben", "viewer", "four other small words")
    assert book.log_in("anna", GOOD, "tty", 0.0) == "engineer"
    assert book.log_in("ben", "four other small words", "tty", 0.0) == "viewer"
    assert book.log_in("ben", GOOD, "tty", 0.0) is None
    assert book.log_in("anna", GOOD + " ", "tty", 0.0) is None


def test_hashes_are_salted_scrypt_and_the_file_is_ours_alone(book: Accounts) -> None:
    book.add("ben", "viewer", GOOD)
    data = json.loads(book.path.read_text())
    rows = data["users"]
    assert rows["anna"]["hash"] != rows["ben"]["hash"], "the same password, another salt"
    assert rows["anna"]["n"] >= 2**14 and GOOD not in book.path.read_text()
    assert stat.S_IMODE(os.stat(book.path).st_mode) == 0o600


@pytest.mark.parametrize("password", ["", "short", "x" * 200, "password", "PASSWORD", "anna-anna", "aaaaaaaaaa", "12345678"])
def test_passwords_that_are_refused(book: Accounts, password: str) -> None:
    with pytest.raises(AccountError):
        book.set_password("anna", password)
    assert book.log_in("anna", GOOD, "tty", 0.0) == "engineer"


@pytest.mark.parametrize("name", ["", "Anna", "1st", "a b", "../x", "x" * 21, "line tty"])
def test_names_that_are_refused(book: Accounts, name: str) -> None:
    with pytest.raises(AccountError):
        book.add(name, "viewer", GOOD)


def test_the_lock_out_grows_and_ends_and_even_the_right_password_waits(book: Accounts) -> None:
    at, waits = 1000.0, []
    for _ in range(9):
        assert book.log_in("anna", "wrong password", "tty", at) is None
        waits.append(book.wait_s("anna", "tty", at))
        assert waits[-1] == 0 or book.log_in("anna", GOOD, "tty", at + waits[-1] - 0.1) is None, "too early"
        at += waits[-1]
    assert waits == [0, 0, 2, 4, 8, 16, 32, 64, 128]
    assert book.log_in("anna", GOOD, "tty", at) == "engineer"
    assert book.wait_s("anna", "tty", at) == 0, "and all is forgotten"


def test_the_lock_out_is_bounded_and_a_clock_that_is_set_back_holds_nobody_longer(book: Accounts) -> None:
    at = 1000.0
    for _ in range(40):
        book.log_in("anna", "wrong password", "tty", at)
        at += book.wait_s("anna", "tty", at)
    assert book.log_in("anna", "wrong password", "tty", at) is None
    assert book.wait_s("anna", "tty", at) == accounts.MOST_WAIT_S
    assert book.wait_s("anna", "tty", at - 1e6) <= accounts.MOST_WAIT_S


def test_names_that_do_not_exist_lock_the_line_they_are_tried_on(book: Accounts) -> None:
    for k in range(3):
        assert book.log_in(f"user{k}", "wrong password", "ttyS0", 10.0) is None
    assert book.wait_s("anna", "ttyS0", 10.0) > 0
    assert book.wait_s("anna", "ttyS1", 10.0) == 0, "the other line is free"
    assert book.log_in("anna", GOOD, "ttyS1", 10.0) == "engineer"
    assert set(json.loads(book.path.read_text())["failures"]) <= {"line ttyS0"}, "made-up names do not fill the file"


def test_the_lock_out_outlives_the_process(book: Accounts) -> None:
    for _ in range(4):
        book.log_in("anna", "wrong password", "tty", 50.0)
    assert Accounts(book.path.parent).wait_s("anna", "tty", 50.0) > 0


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"users": {}}', '{"users": {"anna": {}}}', '{"users": 3}', "\x00\xff"])
def test_a_damaged_file_lets_nobody_in_and_says_what_to_do(book: Accounts, text: str) -> None:
    book.path.write_bytes(text.encode("latin1"))
    for what in (book.empty, lambda: book.log_in("anna", GOOD, "tty", 0.0), lambda: book.add("eve", "engineer", GOOD, first=True)):
        with pytest.raises(AccountError, match=r"[Aa]s root"):
            what()


def test_the_last_engineer_stays(book: Accounts) -> None:
    with pytest.raises(AccountError, match="last engineer"):
        book.remove("anna")
    book.add("ben", "engineer", GOOD)
    book.remove("anna")
    assert book.users() == {"ben": "engineer"} and book.role("anna") is None


def test_two_consoles_change_accounts_one_after_the_other(book: Accounts) -> None:
    names = [f"user{k}" for k in range(6)]
    threads = [threading.Thread(target=Accounts(book.path.parent).add, args=(name, "viewer", GOOD)) for name in names]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert set(book.users()) == {"anna", *names}
