"""The secret that signs links."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0020"


def upgrade() -> None:
    op.create_table(
        "link_secret",
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("secret", name=op.f("pk_link_secret")),
    )
    # Made by Postgres, so that no log of statements has it: 244 random bits.
    random = "uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())"
    op.execute(f"INSERT INTO link_secret (secret) SELECT sha256({random})")


def downgrade() -> None:
    op.drop_table("link_secret")
