"""Every error that volspike raises on purpose, in one tree.

::

    VolspikeError                 the command line prints it and exits 1
    ├── UsageError                the call itself is wrong; exits 2
    ├── InputError                a file or message can't be read at all
    ├── StoreError                Redis, a table or the registry is unreachable, locked or full
    ├── ContractError             a hash, schema or version differs from what this code expects
    │   └── ArtefactError         a model folder is damaged or doesn't match its manifest
    ├── InsufficientDataError     too little data, or no spike, to do what was asked
    ├── SealedError               the sealed block was opened before
    └── PromotionRefused          the gate's answer is no

A message names the field, the value, what was allowed and what to do next.
"""

from __future__ import annotations


class VolspikeError(Exception):
    """Base of all errors raised on purpose; ``exit_code`` is what the command line returns."""

    exit_code = 1


class UsageError(VolspikeError):
    """The arguments of a call make no sense together."""

    exit_code = 2


class InputError(VolspikeError):
    """A file, folder or message stream cannot be read."""


class StoreError(VolspikeError):
    """A store (Redis, Delta table, MLflow registry) is unreachable, locked or out of space."""


class ContractError(VolspikeError):
    """A hash, schema or version is not the one this code was built for."""


class ArtefactError(ContractError):
    """A model folder is damaged or does not match its manifest."""


class InsufficientDataError(VolspikeError):
    """There is too little data, or no spike in it, for what was asked."""


class SealedError(VolspikeError):
    """The sealed block of a data split opens once, and it was opened before."""


class PromotionRefused(VolspikeError):
    """The gate compared, and the answer is no."""
