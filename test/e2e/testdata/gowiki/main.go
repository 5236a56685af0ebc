package main

import (
	"html/template"
	"log"
	"net/http"
	"os"
	"regexp"
)

type page struct{ Title, Body string }

var templates = template.Must(template.ParseFiles("view.html"))

var validPath = regexp.MustCompile(`^/view/([a-zA-Z0-9]+)$`)

func view(w http.ResponseWriter, r *http.Request) {
	m := validPath.FindStringSubmatch(r.URL.Path)
	if m == nil {
		http.NotFound(w, r)
		return
	}
	body, err := os.ReadFile(m[1] + ".txt")
	if err != nil {
		http.NotFound(w, r)
		return
	}
	if err := templates.ExecuteTemplate(w, "view.html", page{m[1], string(body)}); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

func main() {
	http.HandleFunc("/view/", view)
	log.Fatal(http.ListenAndServe(":8080", nil))
}
