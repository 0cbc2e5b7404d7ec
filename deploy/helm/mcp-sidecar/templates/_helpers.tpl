{{- define "mcp-sidecar.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "mcp-sidecar.upstream" -}}
{{- if .Values.upstream.url }}{{ .Values.upstream.url }}
{{- else if .Values.server.image }}http://127.0.0.1:{{ .Values.server.port }}/mcp
{{- else }}{{ fail "set upstream.url to the URL of the MCP server, or server.image to its image" }}
{{- end }}
{{- end }}

{{- define "mcp-sidecar.storeKeys" -}}
{{- if .Values.storeKeys.secretName }}{{ .Values.storeKeys.secretName }}
{{- else if hasPrefix "sealed:" .Values.store }}{{ .Release.Name }}-store-keys
{{- end }}
{{- end }}

{{/* A number of seconds, or the complaint that it is none. */}}
{{- define "mcp-sidecar.seconds" -}}
{{- $name := index . 0 }}{{- $seconds := index . 1 }}
{{- if not (regexMatch "^[0-9]+$" (toString $seconds)) }}{{ fail (printf "%s is a number of seconds, not %v" $name $seconds) }}{{ end }}
{{- $seconds }}
{{- end }}

{{/* The drain in seconds: the pod must not end before it. */}}
{{- define "mcp-sidecar.drain" -}}
{{- range $name := list "delay" "timeout" }}
{{- if hasKey ($.Values.settings.listen | default dict) (printf "drain_%s" $name) }}
{{- fail (printf "set drain.%s in place of settings.listen.drain_%s: the pod has to know of it" $name $name) }}
{{- end }}
{{- end }}
{{- $delay := include "mcp-sidecar.seconds" (list "drain.delay" .Values.drain.delay) }}
{{- $timeout := include "mcp-sidecar.seconds" (list "drain.timeout" .Values.drain.timeout) }}
{{- add (int $delay) (int $timeout) }}
{{- end }}

{{- define "mcp-sidecar.container" -}}
- name: mcp-sidecar
  image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  {{- if .Values.server.image }}
  restartPolicy: Always
  {{- end }}
  env:
    - {name: MCP_SIDECAR_UPSTREAM, value: {{ include "mcp-sidecar.upstream" . | trim | quote }}}
    - {name: MCP_SIDECAR_LISTEN__DRAIN_DELAY, value: {{ .Values.drain.delay | quote }}}
    - {name: MCP_SIDECAR_LISTEN__DRAIN_TIMEOUT, value: {{ .Values.drain.timeout | quote }}}
    {{- with include "mcp-sidecar.storeKeys" . | trim }}
    - {name: MCP_SIDECAR_SESSIONS__KEY, valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: keys}}}
    {{- end }}
    {{- with .Values.store }}
    - {name: MCP_SIDECAR_STORE, value: {{ . | quote }}}
    {{- end }}
    {{- if .Values.tls.secretName }}
    - {name: MCP_SIDECAR_LISTEN__TLS_CERTIFICATE, value: /run/mcp-sidecar/tls/tls.crt}
    - {name: MCP_SIDECAR_LISTEN__TLS_KEY, value: /run/mcp-sidecar/tls/tls.key}
    {{- end }}
    {{- if .Values.adminToken.secretName }}
    - {name: MCP_SIDECAR_ADMIN__TOKEN_FILE, value: /run/mcp-sidecar/admin/token}
    {{- end }}
    {{- range $section, $keys := .Values.settings }}
    {{- range $key, $value := $keys }}
    - {name: MCP_SIDECAR_{{ upper $section }}__{{ upper $key }}, value: {{ kindIs "slice" $value | ternary (toJson $value) (toString $value) | quote }}}
    {{- end }}
    {{- end }}
    {{- with .Values.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    - {name: mcp, containerPort: 8080}
    - {name: mcp-admin, containerPort: 9464}
  {{- if .Values.server.image }}
  startupProbe: {httpGet: {path: /livez, port: mcp-admin}, periodSeconds: 1, failureThreshold: 30}
  {{- end }}
  livenessProbe: {httpGet: {path: /livez, port: mcp-admin}, periodSeconds: 10, timeoutSeconds: 5}
  readinessProbe: {httpGet: {path: /readyz, port: mcp-admin}, periodSeconds: 2, timeoutSeconds: 2}
  {{- if .Values.server.image }}
  lifecycle:
    # Told as soon as the pod begins to end, while the server still runs.
    preStop:
      exec:
        command:
          - /opt/mcp-sidecar/bin/python
          - -c
          - |
            import urllib.request as r
            r.urlopen(r.Request("http://127.0.0.1:9464/drain", method="POST"), timeout=2)
  {{- end }}
  resources:
    {{- toYaml .Values.resources | nindent 4 }}
  securityContext:
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    capabilities: {drop: [ALL]}
    seccompProfile: {type: RuntimeDefault}
  {{- if or .Values.tls.secretName .Values.adminToken.secretName }}
  volumeMounts:
    {{- if .Values.tls.secretName }}
    - {name: tls, mountPath: /run/mcp-sidecar/tls, readOnly: true}
    {{- end }}
    {{- if .Values.adminToken.secretName }}
    - {name: admin-token, mountPath: /run/mcp-sidecar/admin, readOnly: true}
    {{- end }}
  {{- end }}
{{- end }}
