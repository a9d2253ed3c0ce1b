"""The order in which steps are published, and which steps are."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

IN_LINE = sa.text("job_id IS NOT NULL")


def upgrade() -> None:
    op.execute(sa.schema.CreateSequence(sa.Sequence("turns")))
    _create_turns("job_turns", "job_id", within=["remote", "priority", "tenant"])
    _create_turns("tenant_turns", "priority", "tenant", "remote", within=["remote", "priority"])
    due_at = sa.Column("due_at", sa.TIMESTAMP(timezone=True), server_default=sa.text("now()"))
    op.add_column("outbox", due_at)
    # A dispatcher queues the existing rows when it first runs.
    op.execute("UPDATE outbox SET due_at = run_after FROM steps WHERE steps.id = step_id")
    op.alter_column("outbox", "due_at", nullable=False)
    op.add_column("outbox", sa.Column("job_id", sa.Uuid()))
    op.add_column("outbox", sa.Column("priority", sa.SmallInteger()))
    op.add_column("outbox", sa.Column("kind", sa.Text()))
    op.add_column("outbox", sa.Column("chunk_index", sa.Integer()))
    op.create_index(
        "ix_outbox_new", "outbox", ["due_at", "id"], postgresql_where=sa.text("job_id IS NULL")
    )
    op.create_index(
        "ix_outbox_in_line", "outbox", ["job_id", "kind", "chunk_index"], postgresql_where=IN_LINE
    )
    op.create_index(
        "ix_outbox_waiting",
        "outbox",
        ["priority", "kind", "due_at"],
        postgresql_where=sa.text("kind IS NOT NULL"),
    )
    # A doorbell now means that the step is no longer in the outbox.
    op.execute(
        "UPDATE steps SET doorbell = NULL FROM outbox"
        " WHERE outbox.step_id = steps.id AND status = 'pending' AND doorbell IS NOT NULL"
    )
    op.create_index(
        "ix_steps_handed_out",
        "steps",
        ["status", "kind"],
        postgresql_where=sa.text(
            "status = 'running' OR (status = 'pending' AND doorbell IS NOT NULL)"
        ),
    )


def downgrade() -> None:
    op.drop_index("ix_steps_handed_out", table_name="steps")
    for name in ("waiting", "in_line", "new"):
        op.drop_index(f"ix_outbox_{name}", table_name="outbox")
    for name in ("chunk_index", "kind", "priority", "job_id", "due_at"):
        op.drop_column("outbox", name)
    op.drop_table("tenant_turns")
    op.drop_table("job_turns")
    op.execute(sa.schema.DropSequence(sa.Sequence("turns")))


def _create_turns(table: str, *key: str, within: list[str]) -> None:
    """A queue table: its columns are those of ``key`` and, if they are not in it, ``within``."""
    columns: dict[str, sa.types.TypeEngine[Any]] = {
        "job_id": sa.Uuid(),
        "priority": sa.SmallInteger(),
        "tenant": sa.Text(),
        "remote": sa.Boolean(),
        "size": sa.SmallInteger(),
        "since": sa.BigInteger(),
        "passed": sa.SmallInteger(),
    }
    op.create_table(
        table,
        *(
            sa.Column(name, kind, nullable=False)
            for name, kind in columns.items()
            if name != "job_id" or name in key
        ),
        sa.PrimaryKeyConstraint(*key, name=op.f(f"pk_{table}")),
    )
    op.create_index(f"ix_{table}_shortest", table, [*within, "size", "since"])
    op.create_index(f"ix_{table}_longest", table, [*within, "since"])
