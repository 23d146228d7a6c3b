{{- define "understudy.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "understudy.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "understudy.labels" -}}
{{ include "understudy.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "understudy.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "understudy.studentsClaim" -}}
{{ .Values.students.existingClaim | default (printf "%s-students" (include "understudy.fullname" .)) }}
{{- end -}}

{{/* One URL for each pod: the gateway chooses among replicas, and loads versions into each. */}}
{{- define "understudy.podUrls" -}}
{{- $urls := list -}}
{{- range $i := until (int .replicas) -}}
{{- $urls = append $urls (printf "http://%s-%d.%s:%d/v1" $.name $i $.name (int $.port)) -}}
{{- end -}}
{{- $urls | toJson -}}
{{- end -}}

{{/* understudy.yaml: the user's, with the servers that the chart starts where a student names none. */}}
{{- define "understudy.config" -}}
{{- $name := include "understudy.fullname" . -}}
{{- $config := tpl (toYaml .Values.config) . | fromYaml -}}
{{- $listen := dict "host" "0.0.0.0" "port" 8080 "workers" .Values.gateway.workers "drain_delay_s" .Values.gateway.drainDelaySeconds "drain_s" .Values.gateway.drainSeconds -}}
{{- $_ := set $config "listen" $listen -}}
{{- $_ := set $config "store" "sqlite:////var/lib/outbox/understudy.db" -}}
{{- range $task := $config.tasks -}}
{{- if hasKey $task "student" -}}
{{- if and $.Values.vllm.enabled (not $task.student.base_urls) -}}
{{- $_ := set $task.student "base_urls" (include "understudy.podUrls" (dict "name" (printf "%s-vllm" $name) "replicas" $.Values.vllm.replicas "port" 8000) | fromJsonArray) -}}
{{- end -}}
{{- if and $.Values.classifiers.enabled (not $task.student.classifier_urls) -}}
{{- $_ := set $task.student "classifier_urls" (include "understudy.podUrls" (dict "name" (printf "%s-classifiers" $name) "replicas" $.Values.classifiers.replicas "port" 8011) | fromJsonArray) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{- define "understudy.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "understudy.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "understudy.gatewayPod" -}}
metadata:
  labels:
    {{- include "understudy.labels" . | nindent 4 }}
    app.kubernetes.io/component: gateway
  annotations:
    # Tasks, keys and artefacts are taken over on SIGHUP; a rollout does the same without a hand.
    checksum/config: {{ include "understudy.config" . | sha256sum }}
    checksum/secrets: {{ .Values.secrets.checksum | default "none" | quote }}
    {{- with .Values.gateway.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: {{ add (ceil .Values.gateway.drainDelaySeconds) (ceil .Values.gateway.drainSeconds) 15 }}
  securityContext: {{- include "understudy.podSecurity" . | nindent 4 }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "understudy.selector" . | nindent 10 }}
          app.kubernetes.io/component: gateway
  {{- with .Values.gateway.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.gateway.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: gateway
      image: {{ include "understudy.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args: [serve, --config, /etc/understudy/understudy.yaml]
      envFrom:
        - secretRef: {name: {{ .Values.secrets.existing }}}
      ports:
        - {name: http, containerPort: 8080}
      startupProbe:
        httpGet: {path: /healthz, port: http}
        periodSeconds: 2
        failureThreshold: 60
      readinessProbe:
        httpGet: {path: /readyz, port: http}
        periodSeconds: 2
        failureThreshold: 1
      livenessProbe:
        httpGet: {path: /healthz, port: http}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 3
      resources: {{- toYaml .Values.gateway.resources | nindent 8 }}
      securityContext: {{- include "understudy.containerSecurity" . | nindent 8 }}
      volumeMounts:
        - {name: config, mountPath: /etc/understudy, readOnly: true}
        - {name: outbox, mountPath: /var/lib/outbox}
        - {name: students, mountPath: /var/lib/understudy, readOnly: true}
        - {name: tmp, mountPath: /tmp}
  volumes:
    - name: config
      configMap: {name: {{ include "understudy.fullname" . }}}
    - name: students
      persistentVolumeClaim: {claimName: {{ include "understudy.studentsClaim" . }}}
    - name: tmp
      emptyDir: {}
    {{- if not .Values.gateway.outbox.persistent }}
    - name: outbox
      emptyDir: {sizeLimit: {{ .Values.gateway.outbox.size }}}
    {{- end }}
{{- end -}}
