-- +goose Up

-- Which repository a service is connected with. sealed has its secrets, by name, as Vault
-- sealed them.
CREATE TABLE connections (
    id         TEXT   PRIMARY KEY,
    service_id TEXT   NOT NULL UNIQUE REFERENCES services (id) ON DELETE CASCADE,
    settings   TEXT   NOT NULL,
    sealed     TEXT   NOT NULL,
    created_at BIGINT NOT NULL
);

-- What a host told of a repository and nobody has acted on yet: it is here before the host
-- gets its answer.
CREATE TABLE git_events (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    connection_id TEXT    NOT NULL REFERENCES connections (id) ON DELETE CASCADE,
    event         TEXT    NOT NULL,
    at            BIGINT  NOT NULL
);

-- What a host told already, so that the same delivery does nothing twice.
CREATE TABLE git_deliveries (
    connection_id TEXT   NOT NULL REFERENCES connections (id) ON DELETE CASCADE,
    delivery      TEXT   NOT NULL,
    at            BIGINT NOT NULL,
    PRIMARY KEY (connection_id, delivery)
);

-- Deployments whose outcome the host of their repository has not been told yet.
CREATE TABLE git_reports (
    deployment_id TEXT PRIMARY KEY REFERENCES deployments (id) ON DELETE CASCADE
);

-- +goose Down
DROP TABLE git_reports;
DROP TABLE git_deliveries;
DROP TABLE git_events;
DROP TABLE connections;
