# SPDX-License-Identifier: Apache-2.0
"""The base of our managed nodes: one teardown for every way out, and no error that goes unsaid."""

from __future__ import annotations

import traceback
from typing import Any

from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from vla_policy_ros.core.errors import VlaPolicyError

SUCCESS, FAILURE, ERROR = (
    TransitionCallbackReturn.SUCCESS,
    TransitionCallbackReturn.FAILURE,
    TransitionCallbackReturn.ERROR,
)


class ManagedNode(LifecycleNode):
    """Owns the transitions; subclasses fill `configure`, `activate`, `deactivate` and `release`.

    rclpy turns an exception inside a transition into ERROR without a word; here it is logged first. A fault of the
    user's (VlaPolicyError) fails the transition with its message; anything else logs a traceback and goes through
    error processing. `release` runs on cleanup, shutdown, after a failure and at the end of the process: it must be
    safe in every state.
    """

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self.exit_status: int | None = None
        self._autostart_timer: Any = None

    def configure(self) -> None:
        """Load and check everything; raise to refuse."""
        raise NotImplementedError

    def activate(self) -> None:
        """Start work."""
        raise NotImplementedError

    def deactivate(self) -> None:
        """Stop work; nothing may be published afterwards."""
        raise NotImplementedError

    def release(self) -> None:
        """Free what `configure` and `activate` made, in any state, any number of times."""
        raise NotImplementedError

    def autostart(self) -> None:
        """Configure and activate as soon as the node spins; a failure ends the process with status 1."""
        self._autostart_timer = self.create_timer(0.0, self._start)

    def _start(self) -> None:
        self.destroy_timer(self._autostart_timer)
        if self.trigger_configure() != SUCCESS or self.trigger_activate() != SUCCESS:
            self.exit_status = 1

    def close(self) -> None:
        """Stop and release, whatever the state."""
        self._attempt('stop', self.release)

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run `configure`; after a failure nothing stays behind."""
        result = self._attempt('configure', self.configure)
        if result != SUCCESS:
            self._attempt('release', self.release)
            return result
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Open the publishers, then start work."""
        super().on_activate(state)
        result = self._attempt('activate', self.activate)
        if result != SUCCESS:
            self._attempt('deactivate', self.deactivate)
            super().on_deactivate(state)
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop work, then close the publishers."""
        result = self._attempt('deactivate', self.deactivate)
        super().on_deactivate(state)
        return result

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything."""
        super().on_cleanup(state)
        return self._attempt('cleanup', self.release)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything and end the process."""
        super().on_shutdown(state)
        result = self._attempt('shutdown', self.release)
        self.exit_status = 0
        return result

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything and go back to unconfigured."""
        super().on_error(state)
        return self._attempt('error processing', self.release)

    def _attempt(self, name: str, action: Any) -> TransitionCallbackReturn:
        try:
            action()
        except VlaPolicyError as error:
            self.get_logger().error(f'cannot {name}: {error}')
            return FAILURE
        except Exception:  # noqa: BLE001 - the lifecycle border: rclpy would swallow it
            self.get_logger().error(f'cannot {name}:\n{traceback.format_exc()}')
            return ERROR
        return SUCCESS
