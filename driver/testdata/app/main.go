// Command app is the instance of the driver's end-to-end test.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"time"
)

func main() {
	if text := os.Getenv("APP_EXIT"); text != "" {
		code, _ := strconv.Atoi(text)
		fmt.Fprintln(os.Stderr, "cannot go on")
		os.Exit(code)
	}
	var ticks atomic.Int64
	go func() {
		for range time.Tick(time.Millisecond) {
			ticks.Add(1)
		}
	}()
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "hello from %d\n", os.Getpid()) })
	http.HandleFunc("/ticks", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, ticks.Load()) })
	http.HandleFunc("/sleep", func(w http.ResponseWriter, r *http.Request) {
		d, _ := time.ParseDuration(r.FormValue("for"))
		time.Sleep(d)
		io.WriteString(w, "slept")
	})
	http.HandleFunc("/env", func(w http.ResponseWriter, r *http.Request) {
		for _, e := range os.Environ() {
			fmt.Fprintln(w, e)
		}
	})
	http.HandleFunc("/exit", func(w http.ResponseWriter, r *http.Request) { os.Exit(7) })
	fmt.Println("listening on", os.Getenv("PORT"))
	fmt.Fprintln(os.Stderr, http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil))
	os.Exit(1)
}
