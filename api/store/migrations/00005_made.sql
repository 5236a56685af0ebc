-- +goose Up

-- What plans count of the deployments of a workspace: those of deleted services, too.
CREATE TABLE made (
    id         TEXT   PRIMARY KEY, -- of the deployment
    workspace  TEXT   NOT NULL,
    origin     TEXT   NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX made_at ON made (created_at);
INSERT INTO made (id, workspace, origin, created_at)
    SELECT d.id, s.workspace, d.facts, d.created_at FROM deployments d JOIN services s ON s.id = d.service_id;

-- +goose Down
DROP TABLE made;
