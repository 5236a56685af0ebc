-- +goose Up

-- The latest reading of each task's counters. There is no reference to the service: readings
-- may come after it was deleted.
CREATE TABLE meters (
    id           TEXT    PRIMARY KEY, -- of the counters
    service_id   TEXT    NOT NULL,
    alloc_id     TEXT    NOT NULL,
    node         TEXT    NOT NULL,
    requests     BIGINT  NOT NULL,
    compute_ms   BIGINT  NOT NULL,
    egress_bytes BIGINT  NOT NULL,
    cold_starts  BIGINT  NOT NULL,
    running_ms   BIGINT  NOT NULL,
    build_ms     BIGINT  NOT NULL,
    read_at      BIGINT  NOT NULL,
    ended        INTEGER NOT NULL -- 1: no reading differs from this one
);
CREATE INDEX meters_ended ON meters (ended, read_at);

-- What services used, hour by hour: it outlives them.
CREATE TABLE usage_hours (
    service_id   TEXT   NOT NULL,
    hour         BIGINT NOT NULL, -- its beginning
    requests     BIGINT NOT NULL,
    compute_ms   BIGINT NOT NULL,
    mb_ms        BIGINT NOT NULL, -- memory x (compute + running)
    egress_bytes BIGINT NOT NULL,
    cold_starts  BIGINT NOT NULL,
    running_ms   BIGINT NOT NULL,
    build_ms     BIGINT NOT NULL,
    PRIMARY KEY (service_id, hour)
);

-- +goose Down
DROP TABLE usage_hours;
DROP TABLE meters;
