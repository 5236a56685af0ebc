// Package terraform is the home of everything that provisions leapcell: the provider
// (terraform/provider), the modules and their examples. It talks to the platform through
// api/client only and never imports driver, jobs or traefik.
package terraform
