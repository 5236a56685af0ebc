# A service on a plain Nomad cluster: the driver alone, see docs/driver.md.
job "hello" {
  group "app" {
    network {
      port "http" { to = 5678 }
    }
    task "hello" {
      driver = "leapcell"
      config { image = "docker.io/hashicorp/http-echo:1.0" }
    }
  }
}
