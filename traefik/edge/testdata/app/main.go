// Command app stands in for the gate of an instance: it answers on Nomad's port.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

func main() {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if d, err := time.ParseDuration(r.URL.Query().Get("sleep")); err == nil {
			time.Sleep(d)
		}
		w.Header().Set("X-Alloc", os.Getenv("NOMAD_ALLOC_ID"))
		if _, err := io.Copy(w, r.Body); err == nil {
			fmt.Fprint(w, "hello")
		}
	})
	if err := http.ListenAndServe(os.Getenv("NOMAD_ADDR_http"), nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
