{{- define "fleetopt.name" -}}
{{- $name := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) }}
{{- $name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "fleetopt.selector" -}}
app.kubernetes.io/name: fleetopt
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "fleetopt.labels" -}}
{{ include "fleetopt.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end }}

{{- define "fleetopt.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "fleetopt.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (printf "%s-controller" (include "fleetopt.name" .)) }}
{{- end }}

{{/* "yes" where service and controller are containers of one pod. */}}
{{- define "fleetopt.onePod" -}}
{{- if and (eq .Values.mode "onePod") .Values.controller.enabled }}
{{- if not .Values.optimizer.enabled }}
{{- fail "mode onePod needs optimizer.enabled: the pod has the service in it" }}
{{- end }}
{{- if gt (int .Values.optimizer.replicas) 1 }}
{{- fail "mode onePod has one service in every pod: set controller.replicas, not optimizer.replicas" }}
{{- end }}yes
{{- end }}
{{- end }}

{{/* Where the controller finds the service. */}}
{{- define "fleetopt.optimizerUrl" -}}
{{- if or .Values.settings.FLEETOPT_OPTIMIZER_URL .Values.optimizerUrl }}
{{- .Values.settings.FLEETOPT_OPTIMIZER_URL | default .Values.optimizerUrl }}
{{- else if include "fleetopt.onePod" . -}}
http://localhost:8090
{{- else if .Values.optimizer.enabled -}}
http://{{ include "fleetopt.name" . }}-optimizer.{{ .Release.Namespace }}.svc.cluster.local:8080
{{- else }}
{{- fail "optimizer.enabled is false: optimizerUrl has to name the service that the controller asks" }}
{{- end }}
{{- end }}

{{- define "fleetopt.pod" -}}
automountServiceAccountToken: false
# Variables of the services beside it could be taken for settings.
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext: {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "fleetopt.container" -}}
image: {{ include "fleetopt.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{/* The service's container, on a port. */}}
{{- define "fleetopt.optimizerContainer" -}}
name: optimizer
{{ include "fleetopt.container" .root }}
args: [serve, --host, 0.0.0.0, --port, {{ .port | quote }}, --workers, {{ .root.Values.optimizer.workers | quote }}]
ports:
  - {name: http, containerPort: {{ .port }}}
readinessProbe:
  httpGet: {path: /readyz, port: http}
livenessProbe:
  httpGet: {path: /healthz, port: http}
resources: {{- toYaml .root.Values.optimizer.resources | nindent 2 }}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
{{- end }}
