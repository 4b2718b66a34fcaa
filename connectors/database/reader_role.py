"""A PostgreSQL role that may read driftd's tables and nothing else: for Grafana, which runs any SQL that it gets."""

from __future__ import annotations

import re

from connectors.database.schema import metadata
from detectors.errors import InvalidInput

READER_ROLE = "grafana_reader"
QUERY_TIMEOUT_S = 30  # a panel that takes longer helps nobody, and would hold up the daemon's database


def reader_role_sql(role: str = READER_ROLE, *, schema: str = "public", password: str | None = None) -> list[str]:
    """The statements that make the role, or bring it up to date; to be run by the owner of driftd's tables.

    They can be run again. Tables of later versions are readable as well, as long as the same owner makes them.

    Args:
        password: that the role logs in with; None leaves the one that it has. It stands in the statements.

    Raises:
        InvalidInput: a name has others than small letters, digits and _.
    """
    for name in (role, schema):
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", name):
            raise InvalidInput(f"{name} is no name for a role or a schema.", hint="Use small letters, digits and _.")
    tables = ", ".join(f'{schema}."{table.name}"' for table in metadata.sorted_tables)
    statements = [
        f"DO $$ BEGIN CREATE ROLE {role} LOGIN NOINHERIT; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        f"ALTER ROLE {role} SET default_transaction_read_only = on",
        f"ALTER ROLE {role} SET statement_timeout = '{QUERY_TIMEOUT_S}s'",
        f"DO $$ BEGIN EXECUTE format('GRANT CONNECT ON DATABASE %I TO {role}', current_database()); END $$",
        f"GRANT USAGE ON SCHEMA {schema} TO {role}",
        f"GRANT SELECT ON {tables} TO {role}",
        f"ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT SELECT ON TABLES TO {role}",
    ]
    if password is not None:
        # Standard strings: a quote is doubled, and a backslash is itself, as E'' is not used.
        quoted = password.replace("'", "''")
        statements.insert(1, f"ALTER ROLE {role} PASSWORD '{quoted}'")
    return statements


def make_reader_role(url: str, role: str = READER_ROLE, *, password: str | None = None) -> None:
    """Run the statements of `reader_role_sql` in driftd's database, in one transaction.

    Args:
        url: of the database, as its owner: postgresql+psycopg://...

    Raises:
        InvalidInput: the database is no PostgreSQL.
        StoreError: the database refuses; the message never holds the password.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from connectors.database.connection import Database
    from connectors.database.failures import translated

    database = Database(url)
    if database.dialect != "postgresql":
        raise InvalidInput(f"{database.name} has no roles: Grafana reads driftd's tables from PostgreSQL only.")
    failure = None
    try:
        with database.writing() as connection:
            schema = connection.exec_driver_sql("SELECT current_schema()").scalar_one()
            for statement in reader_role_sql(role, schema=schema, password=password):
                try:
                    connection.exec_driver_sql(statement.replace("%", "%%"))
                except SQLAlchemyError as error:
                    failure = translated(error, database.name)
                    raise _Undone from None
    except _Undone:
        pass
    finally:
        database.close()
    if failure is not None:
        raise failure  # outside of the except clauses: the library's error quotes the statement


class _Undone(Exception):
    """Leaves the transaction without keeping anything of it."""
