-- +goose Up

-- Who and what made a deployment, and what was learnt of it on its way: a JSON document.
ALTER TABLE deployments ADD COLUMN facts TEXT NOT NULL DEFAULT '{}';

-- +goose Down
ALTER TABLE deployments DROP COLUMN facts;
