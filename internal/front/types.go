package front

import (
	"path"
	"strings"
)

// types are those of files that sites consist of. They are written here because the machine's
// own table differs from machine to machine, and the same build must give the same manifest.
// Names are those of IANA: https://www.iana.org/assignments/media-types
var types = map[string]string{
	".html": "text/html; charset=utf-8", ".htm": "text/html; charset=utf-8",
	".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
	".mjs": "text/javascript; charset=utf-8", ".cjs": "text/javascript; charset=utf-8",
	".json": "application/json", ".map": "application/json", ".webmanifest": "application/manifest+json",
	".xml": "application/xml", ".rss": "application/rss+xml", ".atom": "application/atom+xml", ".xsl": "application/xslt+xml",
	".txt": "text/plain; charset=utf-8", ".md": "text/markdown; charset=utf-8", ".csv": "text/csv; charset=utf-8",
	".vtt": "text/vtt; charset=utf-8", ".ics": "text/calendar; charset=utf-8",
	".svg": "image/svg+xml", ".ico": "image/x-icon", ".bmp": "image/bmp", ".png": "image/png", ".apng": "image/apng",
	".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif", ".webp": "image/webp", ".avif": "image/avif",
	".woff": "font/woff", ".woff2": "font/woff2", ".ttf": "font/ttf", ".otf": "font/otf", ".eot": "application/vnd.ms-fontobject",
	".wasm": "application/wasm", ".pdf": "application/pdf", ".zip": "application/zip", ".gz": "application/gzip",
	".mp4": "video/mp4", ".webm": "video/webm", ".ogv": "video/ogg", ".mov": "video/quicktime",
	".mp3": "audio/mpeg", ".ogg": "audio/ogg", ".wav": "audio/wav", ".m4a": "audio/mp4", ".flac": "audio/flac",
	".glb": "model/gltf-binary", ".gltf": "model/gltf+json",
}

// squeezes are the types that become smaller, beside everything of text.
var squeezes = map[string]bool{
	"application/json": true, "application/manifest+json": true, "application/xml": true, "application/rss+xml": true,
	"application/atom+xml": true, "application/xslt+xml": true, "image/svg+xml": true, "image/x-icon": true, "image/bmp": true,
	"font/ttf": true, "font/otf": true, "application/vnd.ms-fontobject": true, "application/wasm": true, "model/gltf+json": true,
}

// TypeOf is the content type of a file of that name. What is not known is shown by no browser.
func TypeOf(name string) string {
	if t, ok := types[strings.ToLower(path.Ext(name))]; ok {
		return t
	}
	return "application/octet-stream"
}

// Squeezes reports whether files of a content type become smaller when they are compressed.
func Squeezes(contentType string) bool {
	return strings.HasPrefix(contentType, "text/") || squeezes[contentType]
}
