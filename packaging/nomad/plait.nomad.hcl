# A whole chain: an upstream before your root, relays found by DNS SRV, downstreams behind a consistent-hash balancer.
#
#   plait keygen plait.key && nomad var put nomad/jobs/plait key=@plait.key
#   nomad job run plait.nomad.hcl
#
# Needs Consul, whose DNS answers on each client (127.0.0.1:8600), and clients whose own resolver forwards .consul to it: relays look
# up the upstream. On the clients: plait tune apply edge-many-clients, and /etc/plait/seccomp.json (packaging/container/README.md).
# --admin asks nobody who they are, and tells addresses of viewers and what they ask for: on each client name the network from which
# operators, Prometheus and Consul's checks come, and no viewer: client { host_network "private" { cidr = "10.0.0.0/8" } }. A client
# without that network is given none of this.
# Where clients allow a kill_timeout of more than 30 s (max_kill_timeout), raise both it and PLAIT_DRAIN_TIMEOUT.

variable "image" {
  default = "registry.example/plait:0.1.0"
}

job "plait" {
  datacenters = ["*"]

  group "upstream" {
    network {
      mode = "host"
      port "plait" { static = 7000 }
      port "admin" {
        static       = 9500
        host_network = "private"
      }
    }

    service {
      name = "plait-upstream"
      port = "plait"
      check {
        type     = "http"
        port     = "admin"
        path     = "/ready"
        interval = "5s"
        timeout  = "2s"
      }
    }

    task "upstream" {
      driver       = "docker"
      kill_timeout = "30s"

      config {
        image        = var.image
        network_mode = "host"
        args         = ["upstream", "--listen=0.0.0.0:7000", "--root=http://root.example:80", "--admin=${NOMAD_IP_admin}:9500"]
        security_opt = ["seccomp=/etc/plait/seccomp.json"]
        cap_drop     = ["all"]
        ulimit {
          nofile = "1048576:1048576"
        }
      }

      env {
        PLAIT_KEY           = "${NOMAD_SECRETS_DIR}/plait.key"
        PLAIT_DRAIN_TIMEOUT = "25"
      }

      template {
        destination   = "secrets/plait.key"
        data          = "{{ with nomadVar \"nomad/jobs/plait\" }}{{ .key }}{{ end }}"
        perms         = "0400"
        uid           = 65532
        gid           = 65532
        change_mode   = "signal"
        change_signal = "SIGHUP"
      }

      resources {
        cpu    = 2000
        memory = 2048
      }
    }
  }

  # One on each client of the class: another region or provider is another way.
  group "relay" {
    count = 2

    constraint {
      operator = "distinct_hosts"
      value    = "true"
    }

    network {
      mode = "host"
      port "plait" { static = 7001 }
      port "admin" {
        static       = 9501
        host_network = "private"
      }
    }

    # plait-relay.service.consul has an SRV record for each one that is well.
    service {
      name = "plait-relay"
      port = "plait"
      check {
        type     = "http"
        port     = "admin"
        path     = "/ready"
        interval = "5s"
        timeout  = "2s"
      }
    }

    task "relay" {
      driver       = "docker"
      kill_timeout = "30s"

      config {
        image        = var.image
        network_mode = "host"
        args         = ["relay", "--listen=0.0.0.0:7001", "--allow=plait-upstream.service.consul:7000", "--admin=${NOMAD_IP_admin}:9501"]
        security_opt = ["seccomp=/etc/plait/seccomp.json"]
        cap_drop     = ["all"]
        ulimit {
          nofile = "1048576:1048576"
        }
      }

      env {
        PLAIT_KEY = "${NOMAD_SECRETS_DIR}/plait.key"
      }

      template {
        destination   = "secrets/plait.key"
        data          = "{{ with nomadVar \"nomad/jobs/plait\" }}{{ .key }}{{ end }}"
        perms         = "0400"
        uid           = 65532
        gid           = 65532
        change_mode   = "signal"
        change_signal = "SIGHUP"
      }

      resources {
        cpu    = 1000
        memory = 512
      }
    }
  }

  group "downstream" {
    count = 3

    constraint {
      operator = "distinct_hosts"
      value    = "true"
    }

    # The cache stays with its client.
    ephemeral_disk {
      size   = 100000
      sticky = true
    }

    network {
      mode = "host"
      port "http" { static = 8080 }
      port "admin" {
        static       = 9502
        host_network = "private"
      }
    }

    service {
      name = "plait-downstream"
      port = "http"
      check {
        type     = "http"
        port     = "admin"
        path     = "/ready"
        interval = "2s"
        timeout  = "2s"
      }
    }

    task "downstream" {
      driver       = "docker"
      kill_timeout = "30s"
      user         = "65532"

      config {
        image        = var.image
        network_mode = "host"
        args = [
          "downstream", "--listen=0.0.0.0:8080", "--resolver=127.0.0.1:8600",
          "--path=srv:plait-relay.service.consul,plait-upstream.service.consul:7000",
          "--cache=${NOMAD_ALLOC_DIR}/data/cache", "--cache-size=90GiB", "--admin=${NOMAD_IP_admin}:9502",
          # All viewers come from the address of the balancer, whose own maxconn is what bounds them.
          "--max-per-address=65536",
        ]
        security_opt = ["seccomp=/etc/plait/seccomp.json"]
        cap_drop     = ["all"]
        ulimit {
          nofile = "1048576:1048576"
        }
      }

      env {
        PLAIT_KEY           = "${NOMAD_SECRETS_DIR}/plait.key"
        PLAIT_DRAIN_TIMEOUT = "25"
      }

      template {
        destination   = "secrets/plait.key"
        data          = "{{ with nomadVar \"nomad/jobs/plait\" }}{{ .key }}{{ end }}"
        perms         = "0400"
        uid           = 65532
        gid           = 65532
        change_mode   = "signal"
        change_signal = "SIGHUP"
      }

      resources {
        cpu    = 2000
        memory = 4096
      }
    }
  }

  group "balancer" {
    network {
      mode = "host"
      port "http" { static = 8000 }
    }

    service {
      name = "plait"
      port = "http"
    }

    task "haproxy" {
      driver = "docker"

      config {
        image        = "docker.io/library/haproxy:3.2"
        network_mode = "host"
        volumes      = ["local/haproxy.cfg:/usr/local/etc/haproxy/haproxy.cfg:ro"]
      }

      # Consul knows which downstreams are well; each URL goes to the same one.
      template {
        destination = "local/haproxy.cfg"
        data        = <<EOF
global
    maxconn 20000

defaults
    mode http
    timeout connect 2s
    timeout client 310s
    timeout server 310s
    timeout http-request 10s
    option redispatch
    retries 2

resolvers consul
    nameserver local 127.0.0.1:8600
    accepted_payload_size 8192
    hold valid 5s

frontend viewers
    bind :8000
    default_backend edges

backend edges
    balance uri
    hash-type consistent sdbm avalanche
    hash-balance-factor 150
    default-server check inter 2s fall 2 rise 1 init-addr none resolvers consul resolve-prefer ipv4
    server-template edge 16 _plait-downstream._tcp.service.consul
EOF
      }

      resources {
        cpu    = 1000
        memory = 512
      }
    }
  }
}
