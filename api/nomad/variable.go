package nomad

import (
	"context"

	"github.com/hashicorp/nomad/api"
	"github.com/leapcell/leapcell"
)

// PutVariable writes value as the one item of the variable at path, whatever was there,
// and gives Nomad's index of the change.
func (c *Client) PutVariable(ctx context.Context, path string, value []byte) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	v := &api.Variable{Namespace: c.cfg.Namespace, Path: path, Items: api.VariableItems{leapcell.VariableItem: string(value)}}
	written, _, err := c.api.Variables().Update(v, c.write(ctx))
	if err != nil {
		return 0, c.wrap(err, "write variable "+path)
	}
	return written.ModifyIndex, nil
}

// Variable gives the item of the variable at path, else [leapcell.CodeNotFound].
func (c *Client) Variable(ctx context.Context, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	v, _, err := c.api.Variables().Peek(path, c.query(ctx))
	if err != nil {
		return nil, c.wrap(err, "read variable "+path)
	}
	if v == nil {
		return nil, leapcell.Errorf(leapcell.CodeNotFound, "there is no Nomad variable %s", path)
	}
	return []byte(v.Items[leapcell.VariableItem]), nil
}

// Variables gives the paths of all variables under prefix.
func (c *Client) Variables(ctx context.Context, prefix string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	list, _, err := c.api.Variables().PrefixList(prefix, c.query(ctx))
	if err != nil {
		return nil, c.wrap(err, "list variables under "+prefix)
	}
	paths := make([]string, 0, len(list))
	for _, v := range list {
		paths = append(paths, v.Path)
	}
	return paths, nil
}

// DeleteVariable removes the variable at path; one that is not there is no error.
func (c *Client) DeleteVariable(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := c.api.Variables().Delete(path, c.write(ctx))
	if statusOf(err) == 404 {
		return nil
	}
	return c.wrap(err, "delete variable "+path)
}
