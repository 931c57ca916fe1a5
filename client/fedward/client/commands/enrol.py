"""`fedward client init, install`: how a hospital becomes a member of a consortium."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedward.common.commands import (
    AsJson,
    PassphraseFile,
    confirm_fingerprint,
    new_app,
    passphrase_from,
    print_json,
)
from fedward.common.errors import IdentityError, OutputError, SiteConfigError, StateError
from fedward.common.exit_codes import exit_codes_help

app = new_app()


@app.command(
    "init",
    short_help="Make this site's folder and keys, and the request to send the coordinator.",
    help="""Make this site's folder and keys, and the request to send the coordinator.

Makes two secret keys that never leave this machine: one proves who this site is, the other turns
patients' identifiers into codes. BACK UP THE FOLDER identity to a safe place. Give a passphrase to
have both files encrypted; the daemon then needs it to start, and so do the stewards' commands.

Send NAME.csr, which holds no secret, to the coordinator. They will call: read out the fingerprint
that is printed here.

Also writes client.toml, site.toml and policy.toml, which explain themselves. What is there already
stays.

\b
Examples:
  fedward client init --dir north --site north
  fedward client init --dir north --site north --passphrase-file secret
""",
    epilog=exit_codes_help(IdentityError, OutputError, StateError),
)
def init(
    folder: Annotated[
        Path, typer.Option("--dir", metavar="FOLDER", help="Where to keep everything.")
    ],
    site: Annotated[
        str, typer.Option("--site", metavar="NAME", help="Of this site, known to all members.")
    ],
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Make the folder and print the key's fingerprint."""
    from fedward.client.enrolment import make_site, request_beside
    from fedward.common.identity.keys import spoken

    made = make_site(folder, site, passphrase_from(passphrase_file))
    fingerprint = made.load_public_key().fingerprint
    request = request_beside(folder, site)
    if as_json:
        print_json(
            {
                "folder": str(folder),
                "site": site,
                "request": str(request),
                "fingerprint": fingerprint,
            }
        )
        return
    typer.echo(f"made {folder}; back up {made.identity}: its keys cannot be made again")
    typer.echo(f"send {request} to the coordinator; nothing in it is secret")
    typer.echo(f"fingerprint, to read out when they call:\n  {spoken(fingerprint)}")
    typer.echo(f"then: fedward client install {folder} {site}.crt")


@app.command(
    "install",
    short_help="Install the certificate and roster that the coordinator sent.",
    help="""Install the certificate and roster that the coordinator sent.

Checks that the certificate is for this site's key and name, and that certificate and roster are
signed by one consortium. The first time, call the coordinator and let them read out the
fingerprint of their root: only that shows which consortium it is. Give what you hear with
--ca-fingerprint, or compare it when asked.

Installing the same file again changes nothing. A later file brings a newer certificate or roster;
an older one is refused.

\b
Examples:
  fedward client install north north.crt
  fedward client install north north.crt --ca-fingerprint "e574 c4b8 ..."
""",
    epilog=exit_codes_help(SiteConfigError, IdentityError, OutputError, StateError),
)
def install_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="This site's folder.")],
    bundle: Annotated[
        Path, typer.Argument(metavar="FILE", help="What the coordinator sent: NAME.crt.")
    ],
    ca_fingerprint: Annotated[
        str | None,
        typer.Option(
            "--ca-fingerprint", metavar="TEXT", help="Of the root, as the coordinator read it out."
        ),
    ] = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Check and install the bundle."""
    from fedward.client.enrolment import install
    from fedward.client.home import SiteFolder
    from fedward.common.files import read_bytes
    from fedward.common.identity.certificates import Certificate

    site = SiteFolder.open(folder)

    def confirm(root: Certificate) -> None:
        confirm_fingerprint(
            ca_fingerprint,
            root.fingerprint,
            whose=f"the root of {root.consortium}",
            says="the coordinator",
            option="--ca-fingerprint",
        )

    done = install(
        site,
        read_bytes(bundle, error=IdentityError),
        confirm=confirm,
        passphrase=passphrase_from(passphrase_file),
    )
    server = site.server()
    if as_json:
        print_json(
            {
                "site": done.site,
                "until": done.until.isoformat(),
                "roster_version": done.version,
                "server": {"host": server.host, "port": server.port},
                "changed": done.changed,
            }
        )
        return
    typer.echo("installed" if done.changed else "this was installed already; nothing changed")
    typer.echo(f"{done.site}: certificate until {done.until.date().isoformat()}")
    typer.echo(f"roster version {done.version}; server {server.host} port {server.port}")
