"""The interval of an onset, vectors of kept records, and the keys that thinning has seen in open blocks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("readings", sa.Column("onset_from_ms", sa.BigInteger, nullable=True))
    op.add_column("readings", sa.Column("onset_to_ms", sa.BigInteger, nullable=True))
    op.add_column("kept", sa.Column("vector", sa.LargeBinary, nullable=True))
    op.create_table(
        "thinned_keys",
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("block", sa.BigInteger, nullable=False),
        sa.Column("first_offset", sa.BigInteger, nullable=False),
        sa.Column("blob", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("model", "topic", "number", "block", "first_offset", name="pk_thinned_keys"),
    )
