package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// findTools returns the paths of nginx and wrk, after installing them where
// that is possible. Without wrk its path is empty.
func findTools(ctx context.Context, stderr io.Writer) (nginx, wrk string, err error) {
	if nginx, wrk = lookUp(); nginx != "" && wrk != "" {
		return nginx, wrk, nil
	}
	if _, err := exec.LookPath("apt-get"); err == nil && os.Geteuid() == 0 {
		fmt.Fprintln(stderr, "bench: installing nginx and wrk with apt-get")
		install(ctx, stderr)
		nginx, wrk = lookUp()
	}
	if nginx == "" {
		return "", "", fmt.Errorf("nginx is not installed: run apt-get install nginx-light wrk")
	}
	if wrk == "" {
		fmt.Fprintln(stderr, "bench: no wrk here, the load comes from our own client: it takes more CPU")
	}
	return nginx, wrk, nil
}

// lookUp also looks where Debian puts nginx, which is not on everybody's PATH.
func lookUp() (nginx, wrk string) {
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		nginx, _ = exec.LookPath("/usr/sbin/nginx")
	}
	wrk, _ = exec.LookPath("wrk")
	return nginx, wrk
}

// install does what it can; findTools sees what came of it.
func install(ctx context.Context, stderr io.Writer) {
	for _, args := range [][]string{{"update"}, {"install", "-y", "--no-install-recommends", "nginx-light", "wrk"}} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if text, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(stderr, "bench: apt-get %s: %s: %s\n", args[0], err, lastLine(text))
		}
	}
}

func lastLine(text []byte) string {
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[len(lines)-1]
}

// site yields the part of nginx's configuration that listens on addr.
type site func(addr string) string

// staticSite serves the files below root.
func staticSite(root string) site {
	return func(addr string) string {
		return fmt.Sprintf("server { listen %s backlog=4096; root %q; }", addr, root)
	}
}

// cachingSite is nginx as the generic cache in front of upstream (host:port):
// one request at a time for each object, the others wait for the whole of it.
func cachingSite(upstream string) site {
	return func(addr string) string {
		return fmt.Sprintf(`proxy_cache_path cache levels=1:2 keys_zone=objects:1m inactive=1h use_temp_path=off;
	server {
		listen %s backlog=4096;
		location / {
			proxy_pass http://%s;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_cache objects;
			proxy_cache_key $uri;
			proxy_cache_valid 200 1h;
			proxy_cache_lock on;
			proxy_cache_lock_timeout 60s;
			proxy_cache_lock_age 60s;
		}
	}`, addr, upstream)
	}
}

// startNginx runs nginx below dir, which it makes, on a free port of loopback.
func (b *bench) startNginx(ctx context.Context, dir string, s site) (*process, error) {
	if err := os.MkdirAll(filepath.Join(dir, "tmp"), 0o755); err != nil {
		return nil, fmt.Errorf("making nginx's folder: %w", err)
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, fmt.Errorf("finding a port for nginx: %w", err)
	}
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(nginxConf(addr, s, os.Geteuid() == 0)), 0o644); err != nil {
		return nil, fmt.Errorf("writing nginx's configuration: %w", err)
	}
	p, err := spawn(ctx, b.nginx, "-p", dir, "-e", "stderr", "-c", file, "-g", "daemon off;")
	if err != nil {
		return nil, err
	}
	p.addr = addr
	err = p.await(ctx, func() bool {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return false
		}
		conn.Close()
		return true
	})
	return p, err
}

// nginxConf returns a configuration for two workers; paths in it are below the
// prefix. As root the workers stay root, for our temporary folder is closed to
// others.
func nginxConf(addr string, s site, root bool) string {
	user := ""
	if root {
		user = "user root;\n"
	}
	return user + fmt.Sprintf(`worker_processes 2;
pid nginx.pid;
error_log stderr warn;
events { worker_connections 4096; }
http {
	access_log off;
	sendfile on;
	tcp_nopush on;
	keepalive_requests 1000000;
	default_type application/octet-stream;
	client_body_temp_path tmp/body;
	proxy_temp_path tmp/proxy;
	fastcgi_temp_path tmp/fastcgi;
	uwsgi_temp_path tmp/uwsgi;
	scgi_temp_path tmp/scgi;
	%s
}
`, s(addr))
}
