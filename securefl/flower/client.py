"""The client's side in an app: ``SecureClientApp`` in place of ``ClientApp``, or a mod.

A message of a session goes to :mod:`securefl.flower.session`; the app's own training function is
called from there, on the content it knows, and its reply never leaves. Everything else that a
server can ask of a ClientApp would leave unprotected, and is refused unless the node's own file
allows it. No exception gets past this module, because Flower sends type and text of one to the
server; what leaves instead is a code. The app itself is trusted: it sees the data anyway. That the
app is the one its owner agreed to is not checked here and cannot be (docs/security/limitations.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from securefl.flower.errors import ERROR_NUMBER, PREFIX, Code, Refusal
from securefl.flower.hello import hello_reply
from securefl.flower.logs import traceback_of
from securefl.flower.plan import Kind
from securefl.flower.policy import Node
from securefl.flower.records import HELLO_TYPE, SESSION_TYPE
from securefl.flower.session import answer

__all__ = ["SecureClientApp", "secagg_mod"]

logger = logging.getLogger(__name__)

_App = Callable[[Message, Context], Message]


class SecureClientApp(ClientApp):
    """A ClientApp whose updates leave it masked, and nothing else.

    Use it like Flower's: ``@app.train()`` and ``@app.evaluate()`` functions stay as they are. The
    node's rules and keys come from the file that its SuperNode names::

        flower-supernode ... --node-config 'securefl="/etc/securefl/node.toml"'

    A node without such a file refuses every message.
    """

    def __call__(self, message: Message, context: Context) -> Message:
        """Answers one message. Never raises an ``Exception``; see the module."""
        return _scrubbed(
            message, lambda: _route(message, context, super(SecureClientApp, self).__call__)
        )


def secagg_mod(message: Message, context: Context, app: _App) -> Message:
    """The same as a mod, for an app that cannot change its class.

    Attach it to functions of SecureFL's own actions::

        @app.train("securefl", mods=[secagg_mod])
        @app.query("securefl", mods=[secagg_mod])   # sessions against an active server

    A mod sees only the function it is attached to: it cannot refuse the app's other functions, nor
    catch what happens outside of it. ``SecureClientApp`` can.
    """
    return _scrubbed(message, lambda: _route(message, context, app))


def _scrubbed(message: Message, act: Callable[[], RecordDict]) -> Message:
    """The reply, or a code: the text of what went wrong goes to this node's log only."""
    try:
        return Message(act(), reply_to=message)
    except Refusal as refusal:
        code = refusal.code
        logger.warning("refused (%s, %s):\n%s", code, code.meaning, traceback_of(refusal))
    except Exception as error:
        code = Code.INTERNAL
        # Not logger.exception: it would print the text of the error as it is.
        logger.error("error while answering a message (%s):\n%s", code, traceback_of(error))
    return Message(Error(code=ERROR_NUMBER, reason=f"{PREFIX}{code}"), reply_to=message)


def _route(message: Message, context: Context, app: _App) -> RecordDict:
    kind, _, action = message.metadata.message_type.partition(".")
    node = Node.of(context.node_config, node_id=context.node_id)
    if message.metadata.message_type == SESSION_TYPE:

        def run_app(what: Kind, content: RecordDict) -> RecordDict:
            return _run_app(message, context, app, what, content)

        return answer(message.content, context, node, run_app)
    if message.metadata.message_type == HELLO_TYPE:
        return hello_reply(message.content, node, run_id=context.run_id, node_id=context.node_id)
    if not node.allows_clear(kind, action):
        raise Refusal(
            Code.UNPROTECTED,
            f"a message of type {message.metadata.message_type!r} would be answered in clear",
        )
    reply = app(message, context)
    if reply.has_error():
        raise Refusal(Code.TRAINING, "the app's own function replied with an error")
    return reply.content


def _run_app(
    message: Message, context: Context, app: _App, kind: Kind, content: RecordDict
) -> RecordDict:
    """The app's own function on its usual content, under its usual message type.

    The group id is blanked: it is no part of what the nodes agree on, and an app that goes by it
    could be told something else on each node.
    """
    metadata, envelope = message.metadata, message.content
    group = metadata.group_id
    metadata.message_type, metadata.group_id, message.content = kind.value, "", content
    try:
        reply = app(message, context)
        if reply.has_error():
            raise Refusal(Code.TRAINING, "the app's own function replied with an error")
        return reply.content
    except Refusal:
        raise
    except Exception as error:
        raise Refusal(Code.TRAINING, f"the app's own function raised: {error!r}") from error
    finally:
        metadata.message_type, metadata.group_id = SESSION_TYPE, group
        message.content = envelope
