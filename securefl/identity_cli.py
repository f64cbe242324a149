"""The commands ``securefl identity new | show`` and ``securefl roster build | verify``.

They make the files by which parties know each other without the server's help. ``cli`` registers
them; errors become exit codes there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from securefl.errors import ConfigurationError

__all__ = ["identity", "roster"]

identity = typer.Typer(help="A party's long-term signing key.", no_args_is_help=True)
roster = typer.Typer(help="The list of all parties' public keys.", no_args_is_help=True)

_JSON = typer.Option("--json", help="Print the result as JSON.")
_LEAST = 3  # a cohort of two hides nobody


def _say(found: dict[str, Any], lines: list[str], *, as_json: bool) -> None:
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(lines))


@identity.command()
def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the two files.")],
    *,
    name: Annotated[
        str | None, typer.Option(help="Name of the party (default: the folder's).")
    ] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Make a key: identity.pem, which stays here, and identity.pub, for the roster."""
    from securefl.primitives import identities  # noqa: PLC0415  # load late

    public = identities.create_identity(
        folder, name=folder.resolve().name if name is None else name
    )
    secret_path, public_path = folder / "identity.pem", folder / "identity.pub"
    mark = identities.fingerprint(public.key)
    found = {
        "name": public.name,
        "key": public.key.hex(),
        "fingerprint": mark,
        "secret": str(secret_path),
        "public": str(public_path),
    }
    lines = [
        f"{secret_path}  SECRET (mode 0600): whoever has it is {public.name}. It never leaves "
        "this machine.",
        f"{public_path}  public: give it to whoever keeps the roster, not through the server",
        f"fingerprint {mark}",
    ]
    _say(found, lines, as_json=as_json)


@identity.command()
def show(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="identity.pem, identity.pub, or their folder.")
    ],
    *,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Print the public key and its fingerprint; never a secret."""
    from securefl.primitives import identities  # noqa: PLC0415  # load late

    target = path / "identity.pem" if path.is_dir() else path
    found: dict[str, Any] = {"file": str(target)}
    if target.suffix == ".pub":
        public = identities.load_public(target)
        key = public.key
        found["name"] = public.name
    else:
        key = identities.load_identity(target).public
    found |= {"key": key.hex(), "fingerprint": identities.fingerprint(key)}
    _say(found, [f"{name} {value}" for name, value in found.items()], as_json=as_json)


@roster.command()
def build(
    public: Annotated[list[Path], typer.Argument(metavar="PUB...", help="Public identities.")],
    *,
    previous: Annotated[
        Path | None,
        typer.Option(help="The roster so far: ids stay, and a changed key is refused."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="New file for the roster (default: standard output).")
    ] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Make the roster of these parties, sorted by name."""
    from securefl.primitives import identities  # noqa: PLC0415  # load late

    made = identities.Roster.build(
        [identities.load_public(path) for path in public],
        previous=None if previous is None else identities.Roster.load(previous),
    )
    content = json.dumps(made.to_json(), indent=2) + "\n"
    found = _facts(made)
    if out is None:
        # The roster is JSON already; what people compare goes where it cannot end up in the file.
        typer.echo(content, nl=False)
        typer.echo("\n".join(_lines(found)), err=True)
        return
    try:
        with out.open("x") as file:
            file.write(content)
    except FileExistsError:
        raise ConfigurationError(
            f"{out} exists: write the new roster beside it and compare the two"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"cannot write {out}: {error.strerror}") from None
    _say({"roster": str(out), **found}, [f"{out}", *_lines(found)], as_json=as_json)


@roster.command()
def verify(
    file: Annotated[Path, typer.Argument(metavar="ROSTER", help="A roster.")],
    *,
    digest: Annotated[
        str | None, typer.Option(help="The digest that somebody told you; must be this one.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--identity", help="Your identity.pem; must be listed.")
    ] = None,
    public: Annotated[
        list[Path] | None, typer.Option("--pub", help="A public identity that must be listed.")
    ] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Check a roster, and that it lists whom you know under the keys that you know."""
    from securefl.primitives import identities  # noqa: PLC0415  # load late

    found_roster = identities.Roster.load(file)
    found = _facts(found_roster)
    if digest is not None and "".join(digest.split()).lower() != found["digest"]:
        raise ConfigurationError(
            f"the digest of {file} is {found['digest']}, not {digest}: it is another roster"
        )
    if key is not None:
        own = identities.load_identity(key).public
        member = found_roster.member_of(own)
        if member is None:
            raise ConfigurationError(
                f"{file} does not list the key of {key} ({identities.fingerprint(own)})"
            )
        found["you"] = {"id": int(member.client), "name": member.name}
    for path in public or []:
        known = identities.load_public(path)
        member = found_roster.member_of(known.key)
        if member is None or member.name != known.name:
            listed = "under no name" if member is None else f"as {member.name}"
            raise ConfigurationError(
                f"{file} lists the key of {path} ({known.name}, "
                f"{identities.fingerprint(known.key)}) {listed}"
            )
    _say({"roster": str(file), **found}, [f"{file}: well-formed", *_lines(found)], as_json=as_json)


def _facts(made: Any) -> dict[str, Any]:
    from securefl.primitives import identities  # noqa: PLC0415  # load late

    return {
        "digest": made.digest().hex(),
        "members": [
            {
                "id": int(member.client),
                "name": member.name,
                "fingerprint": identities.fingerprint(member.key),
            }
            for member in made.members
        ],
    }


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [f"{one['id']:>6}  {one['name']:<24} {one['fingerprint']}" for one in found["members"]]
    if "you" in found:
        lines.append(f"you are {found['you']['name']}, id {found['you']['id']}")
    if len(found["members"]) < _LEAST:
        lines.append(f"note: a secure sum needs at least {_LEAST} parties")
    digest = found["digest"]
    groups = " ".join(digest[i : i + 8] for i in range(0, len(digest), 8))
    return [*lines, f"digest {groups}", "Compare the digest with the others, not over the server."]
