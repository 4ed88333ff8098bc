"""``nfw ca create``, ``import``, ``rotate``, ``export`` and ``show``."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nfw.cli.app import Failure, NearestGroup, emit, emit_json
from nfw.cli.options import json_option

if TYPE_CHECKING:
    from nfw.ca import CaInfo

_KEY_TYPES = ["ec-p256", "ec-p384", "rsa-2048", "rsa-4096"]  # nfw.ca.KEY_TYPES, without loading OpenSSL


class _Path(click.Path):
    """A file or folder; what cannot be read or written fails later, with status 1. An empty name would be this one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the name is empty; expected the name of a file or folder", param, ctx)
        return super().convert(value, param, ctx)


_PATH = _Path(path_type=Path, readable=False)


@click.group(cls=NearestGroup)
def ca() -> None:
    """Create, import, rotate, export or show the CA that TLS inspection signs with."""


@ca.command()
@click.option("--name", required=True, help='What clients see as the issuer, such as "Example Corp Firewall".')
@click.option("--out", required=True, metavar="DIR", type=_PATH, help="Gets ca.pem and ca.key.")
@click.option("--days", type=click.IntRange(1, 36500), default=3650, show_default=True, help="How long it is valid.")
@click.option("--key-type", type=click.Choice(_KEY_TYPES), default="ec-p256", show_default=True)
@json_option
def create(name: str, out: Path, days: int, key_type: str, as_json: bool) -> None:
    """Create a CA. Existing files are never overwritten.

    Give ca.pem to the clients to trust. ca.key must stay with the firewall.
    """
    from nfw import ca as authority

    try:
        info = authority.create(name, out, _now(), days=days, key_type=key_type)
    except authority.CaError as error:
        raise Failure(*str(error).splitlines()) from None
    _written(info, out, as_json)


@ca.command(name="import")
@click.argument("certificate", metavar="CERT", type=_PATH)
@click.argument("key", metavar="KEY", type=_PATH)
@click.option("--out", required=True, metavar="DIR", type=_PATH, help="Gets ca.pem and ca.key.")
@click.option("--passphrase-file", metavar="FILE", type=_PATH, help="First line opens the key.")
@json_option
def import_(certificate: Path, key: Path, out: Path, passphrase_file: Path | None, as_json: bool) -> None:
    """Check an existing CA (both files PEM) and copy it to DIR with the right modes."""
    from nfw import ca as authority
    from nfw.policy.files import read_bounded

    passphrase = None
    try:
        if passphrase_file is not None:
            passphrase = read_bounded(passphrase_file, 4096).split(b"\n")[0].rstrip(b"\r")
        info = authority.import_pair(certificate, key, out, _now(), passphrase)
    except authority.CaError as error:
        raise Failure(*str(error).splitlines()) from None
    except OSError as error:
        raise Failure(f"{passphrase_file}: passphrase file {error.strerror}") from None
    _written(info, out, as_json)


@ca.command()
@click.argument("folder", metavar="DIR", type=_PATH)
@click.option("--activate", is_flag=True, help="The new CA takes over; before, every client must trust it.")
@click.option("--name", default="", help="Of the new CA.  [default: the present one's, with the month]")
@click.option("--days", type=click.IntRange(1, 36500), default=3650, show_default=True, help="How long it is valid.")
@click.option("--key-type", type=click.Choice(_KEY_TYPES), default="ec-p256", show_default=True)
@json_option
def rotate(folder: Path, activate: bool, name: str, days: int, key_type: str, as_json: bool) -> None:
    """Follow the CA in DIR by a new one, in two steps.

    First DIR/next/ca.pem and ca.key are made: give both certificates to the clients. Once all trust the new one,
    --activate puts it into its place (the old one is kept beside it), and `nfw policy apply` uses it.
    """
    from nfw import ca as authority

    try:
        if activate:
            info, kept = authority.activate_next(folder, _now())
        else:
            info, kept = authority.prepare_next(folder, _now(), name=name, days=days, key_type=key_type), None
    except authority.CaError as error:
        raise Failure(*str(error).splitlines()) from None
    if as_json:
        where = folder if activate else folder / authority.NEXT
        emit_json({"certificate": str(where / "ca.pem"), "retired": str(kept) if kept else None, **info.to_json()})
        return
    if kept is None:
        _written(info, folder / authority.NEXT, False)
        emit(f"next: clients trust both; nfw ca rotate --activate {folder}; nfw policy apply")
    else:
        emit(f"retired      {kept}")
        _written(info, folder, False)
        emit("next: nfw policy apply; clients may forget the retired one afterwards")


@ca.command()
@click.argument("files", metavar="CERT...", nargs=-1, required=True, type=_PATH)
@click.option("--format", "form", type=click.Choice(["pem", "der", "mobileconfig"]), default="pem", show_default=True)
@click.option("--out", metavar="FILE", type=_PATH, help="Instead of standard output.")
def export(files: tuple[Path, ...], form: str, out: Path | None) -> None:
    """Write certificates as clients take them: DER for Windows and Android, mobileconfig for Apple. Never a key."""
    from nfw import ca as authority

    try:
        data = authority.export(files, form)
        if out is not None:
            out.write_bytes(data)
    except authority.CaError as error:
        raise Failure(*str(error).splitlines()) from None
    except OSError as error:
        raise Failure(f"{out}: {error.strerror}") from None
    if out is None:
        sys.stdout.buffer.write(data)


@ca.command()
@click.argument("file", type=_PATH)
@json_option
def show(file: Path, as_json: bool) -> None:
    """Show a certificate: subject, fingerprint, validity, key, and whether nfw could sign with it."""
    from nfw import ca as authority

    try:
        info = authority.show(file, _now())
    except authority.CaError as error:
        raise Failure(*str(error).splitlines()) from None
    _print(info, as_json)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _written(info: CaInfo, out: Path, as_json: bool) -> None:
    if as_json:
        emit_json({"certificate": str(out / "ca.pem"), "private_key": str(out / "ca.key"), **info.to_json()})
        return
    emit(f"certificate  {out / 'ca.pem'}")
    emit(f"private key  {out / 'ca.key'}")
    _print(info, as_json)


def _print(info: CaInfo, as_json: bool) -> None:
    if as_json:
        emit_json(info.to_json())
        return
    rows = [
        ("subject", info.subject),
        ("issuer", "itself" if info.issuer == info.subject else info.issuer),
        ("sha256", info.fingerprint_sha256),
        ("serial", info.serial),
        ("key", info.key_type),
        ("valid from", info.not_before),
        ("valid until", f"{info.not_after} ({_left(info.days_left)})"),
        ("usable", "no" if info.problems else "yes"),
    ]
    for label, value in rows:
        emit(f"{label:<12} {value}")
    for problem in info.problems:
        emit(f"{'':<12} {problem}")


def _left(days: int) -> str:
    if days < 0:
        return f"expired {-days} days ago"
    return f"{days} day{'' if days == 1 else 's'} left"
