"""A hospital as a node of Flower's own SuperLink: the same daemon, asked by another carrier.

    flower-supernode … --node-config 'site="/var/lib/fedward/north"'

Flower starts a process for every message. Here the message becomes an assignment of the site's
daemon, so that everything holds that holds over the link: policy and approvals before a task, the
approved data, the ledger, the gate, the audit log, and one answer to the same task however often it
is asked.

What does not hold is what Flower's carrier does not give: its messages are not signed by the
coordinator, so there is no evidence to put on record, and no roster says who asks.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path

from flwr.app import Context, Error, Message

from fedward.client.daemon.account import Account
from fedward.client.daemon.daemon import Daemon
from fedward.client.daemon.parts import place
from fedward.client.daemon.record import Record
from fedward.client.daemon.remembered import check_own
from fedward.client.daemon.rules import SiteRules
from fedward.client.home import SiteFolder
from fedward.client.link.assignments import Assignment
from fedward.client.outbox import Outbox, write_durably
from fedward.client.telling import reason_to_tell
from fedward.client.worker.flower_internals import another_identity
from fedward.client.worker.protocol import Do, Done, Load
from fedward.client.worker.records import from_records, to_records
from fedward.client.worker.trainer import Trainer
from fedward.common import records
from fedward.common.errors import FedwardError, RoundError, SiteConfigError
from fedward.common.files import private_folder
from fedward.common.identity.key_files import find_passphrase
from fedward.common.lock import held
from fedward.common.wire.body import Body
from fedward.common.wire.message import task_key

SITE = "site"
"""Key of the node's configuration: the site's folder."""


def answer(message: Message, context: Context) -> Message:
    """Answer a message as the site's daemon would.

    Returns:
        The reply; or an error with the exit code of the refusal, and what may be told about it.
    """
    try:
        home = _home(context)
        with held(home.lock, who="a client"), another_identity():
            reply = asyncio.run(_ask_daemon(home, message, f"flower-{context.run_id}"))
        with Body.open(reply) as body:
            content = body.content()
    except FedwardError as refusal:
        return Message(Error(refusal.exit_code, reason_to_tell(refusal)), reply_to=message)
    if records.ERROR_CODE in content.config:
        code, reason = content.config[records.ERROR_CODE], content.config[records.ERROR_REASON]
        return Message(Error(int(code), str(reason)), reply_to=message)
    return Message(to_records(content), reply_to=message)


def _home(context: Context) -> SiteFolder:
    folder = context.node_config.get(SITE)
    if not isinstance(folder, str):
        raise SiteConfigError(
            "the node's configuration names no site",
            hint="start it with --node-config 'site=\"/path/of/the/site\"'",
        )
    return SiteFolder.open(Path(folder))


async def _ask_daemon(home: SiteFolder, message: Message, run: str) -> Path:
    account = Account(home.ledger)
    try:
        passphrase = find_passphrase()
        key = home.load_key(passphrase)
        with home.open_audit_log(key) as log:
            rules, outbox = SiteRules(home, key, now=datetime.now), Outbox(home.outbox)
            daemon = Daemon(
                place(home, passphrase),
                rules=rules,
                pool=_Here(),
                outbox=outbox,
                books=account,
                record=Record(log),
            )
            try:
                check_own(list(log.entries()), account, rules)
            except FedwardError as error:
                daemon.halted = error
            asked = _assignment(home, message, run)
            outbox.receipt(asked.key)  # nobody says what arrived: who was refused asks anew
            return await daemon.do(asked)
    finally:
        account.close()


def _assignment(home: SiteFolder, message: Message, run: str) -> Assignment:
    """A message as an assignment; its body is kept in the inbox under the task's key."""
    content = from_records(message.content)
    study, number = content.config.get(records.STUDY_HASH), content.config.get(records.ROUND, 0)
    if not isinstance(study, str) or not isinstance(number, int):
        raise RoundError("the server's message cannot be read", hint="use the same fedward there")
    private_folder(home.inbox)
    action = message.metadata.message_type
    received = home.inbox / f"{run}.task"
    written = write_durably(received, content)
    key = task_key(
        run=run,
        round_number=number,
        action=action,
        site=home.settings.site.name,
        body_sha256=written.sha256,
    )
    return Assignment(key, study, run, number, action, received, evidence=b"")


class _Here:
    """Trains in this process: Flower started it for this one message."""

    async def do(self, load: Load, task: Do) -> Done:
        """See `daemon.Trains`."""
        return Trainer(load).do(task)
