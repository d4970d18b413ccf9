"""The control plane: takes pull requests in, has them judged, ranks and merges what holds. Never imports torch.

Of the rest of the repository it takes only `workers.protocol`, `workers.statistics`, `workers.broker` and
`engine.slots.header`.
"""
