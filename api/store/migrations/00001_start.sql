-- +goose Up
CREATE TABLE services (
    id         TEXT   PRIMARY KEY,
    name       TEXT   NOT NULL UNIQUE,
    workspace  TEXT   NOT NULL,
    host       TEXT   NOT NULL,
    url        TEXT   NOT NULL,
    settings   TEXT   NOT NULL,
    live       TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);

-- The last deployment number given out for a name. It outlives the service: Nomad job IDs
-- are made of name and number, and a job ID must never mean two things.
CREATE TABLE deployment_numbers (
    name TEXT    PRIMARY KEY,
    last INTEGER NOT NULL
);

CREATE TABLE deployments (
    id         TEXT    PRIMARY KEY,
    service_id TEXT    NOT NULL REFERENCES services (id) ON DELETE CASCADE,
    service    TEXT    NOT NULL,
    number     INTEGER NOT NULL,
    state      TEXT    NOT NULL,
    source     TEXT    NOT NULL,
    settings   TEXT    NOT NULL,
    image      TEXT    NOT NULL,
    problem    TEXT    NOT NULL,
    created_at BIGINT  NOT NULL,
    updated_at BIGINT  NOT NULL,
    live_at    BIGINT  NOT NULL,
    UNIQUE (service_id, number)
);
CREATE INDEX deployments_state ON deployments (state);

-- Sealed values only; size is that of the clear value in bytes, so that the limit over all
-- variables can be checked without opening them.
CREATE TABLE env_versions (
    service_id TEXT    PRIMARY KEY REFERENCES services (id) ON DELETE CASCADE,
    version    INTEGER NOT NULL,
    applied    INTEGER NOT NULL -- the version that running instances were replaced for
);
CREATE TABLE env_values (
    service_id TEXT    NOT NULL REFERENCES services (id) ON DELETE CASCADE,
    name       TEXT    NOT NULL,
    sealed     TEXT    NOT NULL,
    size       INTEGER NOT NULL,
    PRIMARY KEY (service_id, name)
);

CREATE TABLE tokens (
    hash       TEXT   PRIMARY KEY,
    name       TEXT   NOT NULL UNIQUE,
    role       TEXT   NOT NULL,
    created_at BIGINT NOT NULL
);

-- +goose Down
DROP TABLE tokens;
DROP TABLE env_values;
DROP TABLE env_versions;
DROP TABLE deployments;
DROP TABLE deployment_numbers;
DROP TABLE services;
