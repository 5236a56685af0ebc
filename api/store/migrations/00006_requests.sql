-- +goose Up

-- A request that is repeated because its answer was lost must not make a second deployment.
CREATE UNIQUE INDEX deployments_request ON deployments (service_id, json_extract(facts, '$.request'))
    WHERE json_extract(facts, '$.request') IS NOT NULL;

-- +goose Down
DROP INDEX deployments_request;
