"""`CallPolicy`: what more than passing it on is done with a call, made once for each route.

What it does not do: any of it. A call without a policy pays one look at None.
"""

import attrs


@attrs.frozen(kw_only=True)
class CallPolicy:
    """How calls are treated; a director answers a context that has it (`context.with_policy`)."""
