package jobs

import (
	"reflect"

	"github.com/leapcell/leapcell"
)

// Config is the task's config block as Nomad wants it: the fields of c under their codec
// names. Fields at their zero value are left out, so that a job in Nomad's UI shows only
// what was said.
func Config(c leapcell.TaskConfig) map[string]any {
	out := map[string]any{}
	v := reflect.ValueOf(c)
	for i := range v.NumField() {
		if field := v.Field(i); !field.IsZero() {
			out[v.Type().Field(i).Tag.Get("codec")] = plain(field)
		}
	}
	return out
}

// plain drops named types: they would encode alike, but compare differently to what comes
// back from Nomad.
func plain(v reflect.Value) any {
	switch v.Kind() {
	case reflect.String:
		return v.String()
	case reflect.Int:
		return int(v.Int())
	default:
		return v.Interface()
	}
}
