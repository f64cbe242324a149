"""The commands ``securefl paillier keygen | holder-key | deal | open-share | inspect``.

They make and read key files and say plainly what each file is and who may see it. ``cli``
registers them; errors become exit codes there.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from securefl.errors import ConfigurationError

if TYPE_CHECKING:
    from securefl.primitives.paillier.threshold import KeyShare, ThresholdPublicKey

__all__ = ["paillier"]

paillier = typer.Typer(help="Keys for aggregation with Paillier.", no_args_is_help=True)


class _Primes(StrEnum):
    SAFE = "safe"
    BLUM = "blum"


_JSON = typer.Option("--json", help="Print the result as JSON.")
_BITS = typer.Option(help="Length of the modulus: at least 2048; 3072 is about 128-bit security.")


def _say(found: dict[str, Any], lines: list[str], *, as_json: bool) -> None:
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(lines))


def _folder(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"cannot make the folder {out}: {error.strerror}") from None
    return out


@paillier.command()
def keygen(
    *,
    out: Annotated[Path, typer.Option(help="Folder for the two files.")],
    bits: Annotated[int, _BITS] = 3072,
    primes: Annotated[_Primes, typer.Option(help="blum is faster to make; see the docs.")] = (
        _Primes.SAFE
    ),
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Make a key pair for a key holder who is not the server."""
    from securefl.primitives.paillier import files, generate_keypair  # noqa: PLC0415  # load late

    folder = _folder(out)
    secret_path, public_path = folder / "paillier.secret", folder / "paillier.public"
    for path in (secret_path, public_path):
        if path.exists():
            raise ConfigurationError(f"{path} exists: key files are never overwritten")
    key = generate_keypair(bits, primes="safe" if primes is _Primes.SAFE else "blum")
    files.write_secret(secret_path, key.to_secret_bytes())
    files.write_public(public_path, key.public.to_bytes())
    found = {
        "key_id": key.public.key_id.hex(),
        "bits": key.public.bits,
        "public": str(public_path),
        "secret": str(secret_path),
    }
    lines = [
        f"{public_path}  public: give it to clients out of band, never through the server",
        f"{secret_path}  SECRET (mode 0600): opens every update ever encrypted under this key.",
        "  Its holder must not be the server: the two together read every client.",
        f"key id {found['key_id']}",
    ]
    _say(found, lines, as_json=as_json)


@paillier.command("holder-key")
def holder_key(
    *,
    out: Annotated[Path, typer.Option(help="Folder for the two files.")],
    name: Annotated[str, typer.Option(help="What the files are called.")] = "holder",
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Make the key to which a dealer will seal your share of a threshold key."""
    from securefl.primitives.paillier import files  # noqa: PLC0415  # load late

    folder = _folder(out)
    made = files.holder_key()
    secret_path, public_path = folder / f"{name}.holder.secret", folder / f"{name}.holder.public"
    files.write_secret(secret_path, made.secret)
    files.write_public(public_path, made.public)
    found = {"public": str(public_path), "secret": str(secret_path)}
    lines = [
        f"{public_path}  public: give it to the dealer",
        f"{secret_path}  SECRET (mode 0600): opens the share that the dealer seals to you",
    ]
    _say(found, lines, as_json=as_json)


@paillier.command()
def deal(
    *,
    holder: Annotated[list[Path], typer.Option(help="A holder's public key; once per holder.")],
    out: Annotated[Path, typer.Option(help="Folder for the public key and the sealed shares.")],
    threshold: Annotated[
        int, typer.Option(help="Holders needed to open a sum; 0: two thirds and one.")
    ] = 0,
    bits: Annotated[int, _BITS] = 3072,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Deal a threshold key: one sealed share per holder; nothing secret stays on disk."""
    from securefl.primitives.paillier import files  # noqa: PLC0415  # load late
    from securefl.primitives.paillier import threshold as scheme  # noqa: PLC0415  # load late

    keys = [files.read_holder_public(files.read(path)) for path in holder]
    if len({key.raw for key in keys}) != len(keys):
        raise ConfigurationError("one holder's key is given twice: that holder would count twice")
    t = threshold or scheme.default_threshold(len(keys))
    folder = _folder(out)
    targets = [folder / f"share-{i:03d}.sealed" for i in range(1, len(keys) + 1)]
    public_path = folder / "threshold.public"
    taken = next((path for path in (public_path, *targets) if path.exists()), None)
    if taken is not None:
        raise ConfigurationError(f"{taken} exists: key files are never overwritten")
    public, shares = scheme.deal(threshold=t, parties=len(keys), bits=bits)
    _test_opening(public, shares)
    # All are sealed before any is written: a bad holder's key leaves no half-dealt set behind.
    sealed = [files.seal_share(share, key) for share, key in zip(shares, keys, strict=True)]
    for path, data in zip(targets, sealed, strict=True):
        files.write_public(path, data)
    files.write_public(public_path, public.to_bytes())
    found = {
        "key_id": public.key_id.hex(),
        "bits": public.public.bits,
        "threshold": t,
        "parties": len(keys),
        "public": str(public_path),
        "shares": [str(path) for path in targets],
    }
    lines = [
        f"{public_path}  public: give it to clients and holders out of band",
        *(f"{path}  sealed to {who}: send it to that holder" for path, who in zip(
            targets, holder, strict=True
        )),
        f"{t} of {len(keys)} holders open a sum; {t} of them without the server read every update",
        "that they hold. A test message was opened by two different sets of holders.",
        "The dealer has seen everything: this process ends now, and nothing secret was written.",
        f"key id {found['key_id']}",
    ]  # fmt: skip
    _say(found, lines, as_json=as_json)


def _test_opening(public: ThresholdPublicKey, shares: list[KeyShare]) -> None:
    """Two different sets of t holders open one message, or nothing is written."""
    from securefl.primitives.paillier import Encryptor  # noqa: PLC0415  # load late

    message = [20_250_101]
    sealed = Encryptor(public.public, public.s).encrypt(message).ciphertexts
    t = public.threshold
    for chosen in (shares[:t], shares[-t:]):
        opened = public.combine({share.index: share.partial(sealed) for share in chosen})
        if opened != message:
            raise ConfigurationError("the dealt shares do not open a test message: deal again")


@paillier.command("open-share")
def open_share(
    sealed: Annotated[Path, typer.Argument(help="The sealed share.")],
    *,
    key: Annotated[Path, typer.Option(help="Your holder's secret key.")],
    public: Annotated[Path, typer.Option(help="The threshold public key.")],
    out: Annotated[Path, typer.Option(help="Where the opened share goes (mode 0600).")],
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Open and check the share that a dealer sealed to you."""
    from securefl.primitives.paillier import files  # noqa: PLC0415  # load late
    from securefl.primitives.paillier import threshold as scheme  # noqa: PLC0415  # load late

    known = scheme.ThresholdPublicKey.from_bytes(files.read(public))
    share = files.open_share(files.read(sealed), files.read_holder_key(files.read(key)), known)
    files.write_secret(out, share.to_secret_bytes())
    found = {"index": share.index, "key_id": known.key_id.hex(), "share": str(out)}
    lines = [
        f"{out}  SECRET (mode 0600): share {share.index} of {known.parties}, fits the public key",
        f"  {known.threshold} such shares open every sum. Keep it where the server cannot reach.",
    ]
    _say(found, lines, as_json=as_json)


@paillier.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A key file.")],
    *,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Say what a key file is, check it, and warn if a secret one can be read by others."""
    from securefl.primitives.paillier import files  # noqa: PLC0415  # load late

    data = files.read(file)
    kind = files.kind_of(data)
    warning = files.describe_permissions(file, kind)
    details = _details(kind, data)
    found: dict[str, Any] = {"file": str(file), "kind": str(kind), **details}
    found["secret"] = kind in files.SECRET_KINDS
    found["warning"] = warning
    lines = [f"{file}: {kind}{' (SECRET)' if found['secret'] else ''}"]
    lines += [f"  {name}: {value}" for name, value in details.items()]
    if warning:
        lines.append(f"WARNING: {warning}")
    _say(found, lines, as_json=as_json)


def _details(kind: str, data: bytes) -> dict[str, Any]:
    """What may be said about a key file: never a secret number."""
    from securefl.primitives.paillier import PublicKey, SecretKey, files  # noqa: PLC0415  # load late
    from securefl.primitives.paillier.threshold import ThresholdPublicKey  # noqa: PLC0415  # load late

    if kind in (files.FileKind.PUBLIC, files.FileKind.SECRET):
        public = (
            PublicKey.from_bytes(data)
            if kind == files.FileKind.PUBLIC
            else SecretKey.from_bytes(data).public
        )
        return {"bits": public.bits, "key_id": public.key_id.hex()}
    if kind == files.FileKind.THRESHOLD:
        key = ThresholdPublicKey.from_bytes(data)
        return {
            "bits": key.public.bits,
            "threshold": key.threshold,
            "parties": key.parties,
            "degree": key.s,
            "key_id": key.key_id.hex(),
        }
    if kind == files.FileKind.HOLDER_PUBLIC:
        return {"public": files.read_holder_public(data).raw.hex()}
    if kind == files.FileKind.HOLDER_SECRET:
        return {"public": files.read_holder_key(data).public.hex()}
    index, key_id = files.label_of(data)
    return {"index": index, "key_id": key_id.hex()}
