"""Jobs of several kinds: transcriptions, parts and the results of steps in tables of their own."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0009"
down_revision = "0008"

COUNT_REMAINING = """
    UPDATE jobs SET remaining = (
        SELECT count(*) FROM chunks WHERE chunks.job_id = jobs.id AND NOT EXISTS (
            SELECT FROM steps WHERE steps.job_id = jobs.id AND part = index
            AND CASE WHEN coalesce((jobs.options ->> 'moderation')::boolean, false)
                THEN steps.kind = 'moderate' AND steps.status IN ('done', 'failed')
                ELSE steps.kind = 'transcribe' AND steps.status = 'done' END
        )
    )
"""
"""As the older version counted: a chunk is finished once its last step has ended."""


def upgrade() -> None:
    op.create_table(
        "transcriptions",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("detected_language", sa.Text()),
        sa.Column("language_probabilities", JSONB()),
        sa.Column("audio_track", sa.SmallInteger()),
        sa.Column("weights_sha256", sa.Text()),
        sa.Column("charged_ms", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_transcriptions_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_transcriptions")),
    )
    op.execute(
        "INSERT INTO transcriptions SELECT id, detected_language, language_probabilities,"
        " audio_track, weights_sha256, charged_ms FROM jobs"
    )

    op.add_column(
        "jobs", sa.Column("kind", sa.Text(), nullable=False, server_default="transcription")
    )
    op.add_column("jobs", sa.Column("phase", sa.Text()))
    op.add_column(
        "jobs", sa.Column("parts_total", sa.Integer(), nullable=False, server_default=sa.text("0"))
    )
    op.add_column(
        "jobs",
        sa.Column("parts_known", sa.Boolean(), nullable=False, server_default=sa.text("false")),
    )
    op.add_column("jobs", sa.Column("units_total", sa.BigInteger()))
    op.add_column(
        "jobs",
        sa.Column("units_done", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
    )
    op.add_column("jobs", sa.Column("resumed_at", sa.TIMESTAMP(timezone=True)))
    op.execute(
        "UPDATE jobs SET parts_total = chunks_total, parts_known = planned,"
        " units_total = duration_ms, units_done = done_ms,"
        " phase = CASE"
        " WHEN status = 'PENDING_UPLOAD' THEN NULL"
        " WHEN recording_id IS NULL AND source_url IS NULL THEN NULL"
        " WHEN recording_id IS NULL THEN 'fetch'"
        " WHEN EXISTS (SELECT FROM steps WHERE job_id = jobs.id AND steps.kind = 'merge')"
        " THEN 'merge' ELSE 'chunks' END"
    )

    op.alter_column("steps", "chunk_index", new_column_name="part")
    op.alter_column("steps", "doorbell", new_column_name="rq_job_id")
    op.drop_constraint(op.f("ck_steps_kind"), "steps", type_="check")
    op.drop_constraint(op.f("uq_steps_job_id_kind_chunk_index"), "steps", type_="unique")
    op.create_unique_constraint(
        op.f("uq_steps_job_id_kind_part"),
        "steps",
        ["job_id", "kind", "part"],
        postgresql_nulls_not_distinct=True,
    )
    op.add_column("steps", sa.Column("result", JSONB()))
    op.add_column("steps", sa.Column("elapsed_ms", sa.Integer()))
    op.add_column(
        "steps",
        sa.Column("stored_count", sa.Integer(), nullable=False, server_default=sa.text("0")),
    )
    # A chunk has a result only if its step is done; a missing step is created.
    for kind, result, elapsed_ms in (
        ("transcribe", "result", "engine_ms"),
        ("moderate", "moderation", "moderation_ms"),
    ):
        op.execute(
            "INSERT INTO steps (job_id, kind, part, status, attempt, failures, losses, finished_at,"  # noqa: S608
            " result, elapsed_ms, stored_count)"
            f" SELECT job_id, '{kind}', index, 'done', 1, 0, 0, now(), {result}, {elapsed_ms}, 1"
            f" FROM chunks WHERE {result} IS NOT NULL"
            " ON CONFLICT (job_id, kind, part) DO UPDATE SET status = 'done', token = NULL,"
            " lease_until = NULL, result = excluded.result, elapsed_ms = excluded.elapsed_ms,"
            " stored_count = excluded.stored_count"
        )
    op.execute(
        "UPDATE steps SET elapsed_ms = plan_ms FROM jobs"
        " WHERE jobs.id = steps.job_id AND steps.kind = 'plan'"
    )
    op.execute("UPDATE steps SET stored_count = 1 WHERE status = 'done'")

    op.rename_table("chunks", "parts")
    op.alter_column("parts", "windows", new_column_name="data")
    op.add_column("parts", sa.Column("units", sa.Integer()))
    op.execute("UPDATE parts SET units = (data -> -1 ->> 1)::int - (data -> 0 ->> 0)::int")
    op.alter_column("parts", "units", nullable=False)
    for column in ("result", "engine_ms", "stored_count", "moderation", "moderation_ms"):
        op.drop_column("parts", column)
    op.execute("ALTER TABLE parts RENAME CONSTRAINT pk_chunks TO pk_parts")
    op.execute("ALTER TABLE parts RENAME CONSTRAINT fk_chunks_job_id TO fk_parts_job_id")
    op.execute("ALTER INDEX ix_chunks_content_hash RENAME TO ix_parts_content_hash")

    op.alter_column("failures", "chunk_index", new_column_name="part")
    op.drop_index("ix_outbox_in_line", table_name="outbox")
    op.alter_column("outbox", "chunk_index", new_column_name="part")
    op.create_index(
        "ix_outbox_in_line",
        "outbox",
        ["job_id", sa.text("part NULLS FIRST"), "id"],
        postgresql_where=sa.text("job_id IS NOT NULL"),
    )

    op.drop_index("ix_jobs_processing", table_name="jobs")
    op.create_index(
        "ix_jobs_processing",
        "jobs",
        [sa.text("coalesce(resumed_at, started_at)")],
        postgresql_where=sa.text("status = 'PROCESSING'"),
    )
    op.drop_constraint(op.f("ck_jobs_remaining"), "jobs", type_="check")
    for column in (
        "planned",
        "chunks_total",
        "remaining",
        "done_ms",
        "plan_ms",
        "duration_ms",
        "detected_language",
        "language_probabilities",
        "audio_track",
        "weights_sha256",
        "charged_ms",
    ):
        op.drop_column("jobs", column)


def downgrade() -> None:
    # The older version has no jobs of other kinds.
    op.execute("DELETE FROM jobs WHERE kind <> 'transcription'")

    op.rename_table("parts", "chunks")
    op.execute("ALTER TABLE chunks RENAME CONSTRAINT pk_parts TO pk_chunks")
    op.execute("ALTER TABLE chunks RENAME CONSTRAINT fk_parts_job_id TO fk_chunks_job_id")
    op.execute("ALTER INDEX ix_parts_content_hash RENAME TO ix_chunks_content_hash")
    op.alter_column("chunks", "data", new_column_name="windows")
    op.add_column("chunks", sa.Column("result", JSONB()))
    op.add_column("chunks", sa.Column("engine_ms", sa.Integer()))
    op.add_column(
        "chunks",
        sa.Column("stored_count", sa.Integer(), nullable=False, server_default=sa.text("0")),
    )
    op.alter_column("chunks", "stored_count", server_default=None)
    op.add_column("chunks", sa.Column("moderation", JSONB()))
    op.add_column("chunks", sa.Column("moderation_ms", sa.Integer()))
    op.execute(
        "UPDATE chunks SET result = steps.result, engine_ms = elapsed_ms,"
        " stored_count = steps.stored_count FROM steps WHERE steps.job_id = chunks.job_id"
        " AND part = index AND kind = 'transcribe' AND status = 'done'"
    )
    op.execute(
        "UPDATE chunks SET moderation = steps.result, moderation_ms = elapsed_ms"
        " FROM steps WHERE steps.job_id = chunks.job_id"
        " AND part = index AND kind = 'moderate' AND status = 'done'"
    )

    op.add_column("jobs", sa.Column("detected_language", sa.Text()))
    op.add_column("jobs", sa.Column("language_probabilities", JSONB()))
    op.add_column("jobs", sa.Column("audio_track", sa.SmallInteger()))
    op.add_column("jobs", sa.Column("weights_sha256", sa.Text()))
    op.add_column(
        "jobs", sa.Column("charged_ms", sa.Integer(), nullable=False, server_default=sa.text("0"))
    )
    op.add_column("jobs", sa.Column("plan_ms", sa.Integer()))
    op.add_column("jobs", sa.Column("duration_ms", sa.Integer()))
    for column, kind, unset in (
        ("planned", sa.Boolean(), "false"),
        ("chunks_total", sa.Integer(), "0"),
        ("remaining", sa.Integer(), "0"),
        ("done_ms", sa.Integer(), "0"),
    ):
        op.add_column(
            "jobs", sa.Column(column, kind, nullable=False, server_default=sa.text(unset))
        )
        op.alter_column("jobs", column, server_default=None)
    op.execute(
        "UPDATE jobs SET detected_language = it.detected_language,"
        " language_probabilities = it.language_probabilities, audio_track = it.audio_track,"
        " weights_sha256 = it.weights_sha256, charged_ms = it.charged_ms"
        " FROM transcriptions AS it WHERE it.job_id = jobs.id"
    )
    op.execute(
        "UPDATE jobs SET planned = parts_known, chunks_total = parts_total,"
        " duration_ms = units_total, done_ms = units_done,"
        " plan_ms = (SELECT elapsed_ms FROM steps WHERE job_id = jobs.id AND kind = 'plan')"
    )
    op.execute(COUNT_REMAINING)
    op.create_check_constraint(op.f("ck_jobs_remaining"), "jobs", "remaining >= 0")
    op.drop_index("ix_jobs_processing", table_name="jobs")
    op.create_index(
        "ix_jobs_processing",
        "jobs",
        ["started_at"],
        postgresql_where=sa.text("status = 'PROCESSING'"),
    )
    for column in (
        "kind",
        "phase",
        "parts_total",
        "parts_known",
        "units_total",
        "units_done",
        "resumed_at",
    ):
        op.drop_column("jobs", column)
    op.drop_column("chunks", "units")

    op.drop_index("ix_outbox_in_line", table_name="outbox")
    op.alter_column("outbox", "part", new_column_name="chunk_index")
    op.create_index(
        "ix_outbox_in_line",
        "outbox",
        ["job_id", "kind", "chunk_index"],
        postgresql_where=sa.text("job_id IS NOT NULL"),
    )
    op.alter_column("failures", "part", new_column_name="chunk_index")
    for column in ("result", "elapsed_ms", "stored_count"):
        op.drop_column("steps", column)
    op.drop_constraint(op.f("uq_steps_job_id_kind_part"), "steps", type_="unique")
    op.alter_column("steps", "part", new_column_name="chunk_index")
    op.alter_column("steps", "rq_job_id", new_column_name="doorbell")
    op.create_unique_constraint(
        op.f("uq_steps_job_id_kind_chunk_index"),
        "steps",
        ["job_id", "kind", "chunk_index"],
        postgresql_nulls_not_distinct=True,
    )
    op.create_check_constraint(
        op.f("ck_steps_kind"),
        "steps",
        "kind IN ('fetch', 'plan', 'transcribe', 'moderate', 'merge')",
    )
    op.drop_table("transcriptions")
