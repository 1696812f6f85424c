{{/* KubeRay appends up to six characters to a RayService's name, and a RayCluster's has at most 53. */}}
{{- define "preceptor.name" -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" .Release.Name) -}}
{{- fail (printf "release name: got %q, expected it to start with a letter and to have letters, digits and - only" .Release.Name) -}}
{{- end -}}
{{- if gt (len .Release.Name) 47 -}}
{{- fail (printf "release name: got %d characters, expected at most 47 for a RayService" (len .Release.Name)) -}}
{{- end -}}
{{- .Release.Name -}}
{{- end -}}

{{/*
Labels of the pods by which Services, budgets and policies find them. Not app.kubernetes.io/name: KubeRay selects the
head by its own value of it.
*/}}
{{- define "preceptor.podLabels" -}}
app.kubernetes.io/instance: {{ include "preceptor.name" . }}
app.kubernetes.io/part-of: preceptor
{{- end -}}

{{- define "preceptor.labels" -}}
{{ include "preceptor.podLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "preceptor.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* The Services that KubeRay makes: of the head, so of the directory, and of the replicas. */}}
{{- define "preceptor.directoryHost" -}}
{{ include "preceptor.name" . }}-head-svc.{{ .Release.Namespace }}.svc
{{- end -}}
{{- define "preceptor.replicasHost" -}}
{{ include "preceptor.name" . }}-serve-svc.{{ .Release.Namespace }}.svc
{{- end -}}

{{/* What students are given as their teacher's address. */}}
{{- define "preceptor.address" -}}
{{- $port := int64 .Values.service.port -}}
{{ .Values.insecure | ternary "preceptor" "preceptors" }}://{{ include "preceptor.directoryHost" . }}:{{ $port }},{{ include "preceptor.replicasHost" . }}:{{ add1 $port }}
{{- end -}}

{{- define "preceptor.tlsSecret" -}}
{{ .Values.tls.secretName | default (printf "%s-tls" (include "preceptor.name" .)) }}
{{- end -}}

{{/* The `args` of the Serve application: `teacher.config`, and what the chart knows better. */}}
{{- define "preceptor.config" -}}
{{- $teacher := .Values.teacher -}}
{{- $own := dict
  "host" "0.0.0.0"
  "port" .Values.service.port
  "auth" "tokens"
  "tenants" (printf "/etc/preceptor/tenants/%s" .Values.tenants.key)
  "num_replicas" ($teacher.autoscaling.enabled | ternary $teacher.autoscaling.minReplicas $teacher.replicas)
  "num_cpus" $teacher.cpus
  "num_gpus" $teacher.gpus -}}
{{- with $teacher.autoscaling -}}
{{- if .enabled -}}
{{- $_ := set $own "autoscaling" (mergeOverwrite (deepCopy .policy) (dict "max_replicas" .maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- if .Values.insecure -}}
{{- $_ := set $own "insecure" true -}}
{{- else -}}
{{- $tls := dict "certificate" "/etc/preceptor/tls/tls.crt" "key" "/etc/preceptor/tls/tls.key" -}}
{{- if .Values.tls.clientCa.secretName -}}
{{- $_ := set $tls "client_ca" (printf "/etc/preceptor/client-ca/%s" .Values.tls.clientCa.key) -}}
{{- end -}}
{{- $_ := set $own "tls" $tls -}}
{{- end -}}
{{- mergeOverwrite (dict "name" (include "preceptor.name" .)) (deepCopy $teacher.config) $own | toYaml -}}
{{- end -}}

{{/* The ports of which each replica of a pod takes one, FIRST-LAST; there are eight to spare. */}}
{{- define "preceptor.lastReplicaPort" -}}
{{- $config := include "preceptor.config" . | fromYaml -}}
{{- $most := dig "autoscaling" "max_replicas" $config.num_replicas $config -}}
{{- min (add (int64 $config.port) (int64 $most) 8) 65535 -}}
{{- end -}}
{{- define "preceptor.replicaPorts" -}}
{{ add1 (int64 .Values.service.port) }}-{{ include "preceptor.lastReplicaPort" . }}
{{- end -}}

{{/* The console's port on the head; empty: there is none. */}}
{{- define "preceptor.consolePort" -}}
{{- $console := get .Values.teacher.config "console" -}}
{{- if kindIs "map" $console -}}
{{ int64 (get $console "port" | default 41480) }}
{{- end -}}
{{- end -}}

{{/* What Ray's processes need before they start: services/teacher/environment.py, to the letter. */}}
{{- define "preceptor.environment" -}}
{{- $config := include "preceptor.config" . | fromYaml -}}
{{- $limits := $config.limits | default dict -}}
- {name: RAY_SERVE_ENABLE_DIRECT_INGRESS, value: "1"}
- {name: RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT, value: {{ add1 (int64 $config.port) | quote }}}
- {name: RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT, value: {{ add1 (int64 (include "preceptor.lastReplicaPort" .)) | quote }}}
- {name: RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD, value: "0"}
- {name: PRECEPTOR_HOST, value: {{ $config.host | quote }}}
- {name: RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, value: services.teacher.ingress.restrict_listening}
- {name: RAY_SERVE_PORT_QUARANTINE_S, value: "0"}
- {name: RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S, value: "0.5"}
- {name: RAY_SERVE_GRPC_MAX_MESSAGE_SIZE, value: {{ add (int64 ($limits.max_frame_bytes | default 16777216)) 65536 | quote }}}
- {name: RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S, value: "1"}
- {name: RAY_worker_maximum_startup_concurrency, value: "16"}
- {name: RAY_worker_niceness, value: "0"}
{{- with .Values.teacher.env }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Worker pods at the start, and the most there may be. On CPUs a redeployment needs one more. */}}
{{- define "preceptor.spareWorkers" -}}
{{- $teacher := .Values.teacher -}}
{{- if kindIs "invalid" $teacher.spareWorkers -}}
{{- gt (int64 $teacher.gpus) 0 | ternary 0 1 -}}
{{- else -}}
{{- int64 $teacher.spareWorkers -}}
{{- end -}}
{{- end -}}

{{- define "preceptor.volumes" -}}
- name: tenants
  secret: {secretName: {{ .Values.tenants.secretName | quote }}, defaultMode: 0440}
{{- if not .Values.insecure }}
- name: tls
  secret: {secretName: {{ include "preceptor.tlsSecret" . | quote }}, defaultMode: 0440}
{{- with .Values.tls.clientCa }}
{{- if .secretName }}
- name: client-ca
  secret: {secretName: {{ .secretName | quote }}, defaultMode: 0440}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.teacher.weights }}
{{- if .claimName }}
- name: weights
  persistentVolumeClaim: {claimName: {{ .claimName | quote }}, readOnly: true}
{{- end }}
{{- end }}
{{- with .Values.teacher.volumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "preceptor.volumeMounts" -}}
- {name: tenants, mountPath: /etc/preceptor/tenants, readOnly: true}
{{- if not .Values.insecure }}
- {name: tls, mountPath: /etc/preceptor/tls, readOnly: true}
{{- if .Values.tls.clientCa.secretName }}
- {name: client-ca, mountPath: /etc/preceptor/client-ca, readOnly: true}
{{- end }}
{{- end }}
{{- with .Values.teacher.weights }}
{{- if .claimName }}
- {name: weights, mountPath: {{ .mountPath | quote }}, readOnly: true}
{{- end }}
{{- end }}
{{- with .Values.teacher.volumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Where pods run and as whom; takes (list context placement). */}}
{{- define "preceptor.podSpec" -}}
{{- $placement := index . 1 -}}
{{- with index . 0 -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- range $field := list "nodeSelector" "tolerations" "affinity" }}
{{- with get $placement $field }}
{{ $field }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
volumes:
  {{- include "preceptor.volumes" . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What head and workers share of their container. */}}
{{- define "preceptor.container" -}}
image: {{ include "preceptor.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.containerSecurityContext | nindent 2 }}
env:
  {{- include "preceptor.environment" . | nindent 2 }}
volumeMounts:
  {{- include "preceptor.volumeMounts" . | nindent 2 }}
{{- end -}}

{{/* Requests and limits of a replica: the same, so that Ray counts on what is there. */}}
{{- define "preceptor.replicaResources" -}}
cpu: {{ .cpus | quote }}
memory: {{ .memory | quote }}
{{- if .gpus }}
{{ .gpuResource }}: {{ int64 .gpus | quote }}
{{- end }}
{{- end -}}

{{/* Serving is what a worker is for; KubeRay's own probe asks a proxy that is not there. */}}
{{- define "preceptor.probe" -}}
exec:
  command:
    - python
    - -m
    - services.teacher.health_cli
    - {{ .Values.insecure | ternary "preceptor" "preceptors" }}://127.0.0.1:{{ int64 .Values.service.port }}
    - --any-port
    - {{ include "preceptor.replicaPorts" . }}
    - --timeout
    - "3"
{{- if not .Values.insecure }}
{{- if .Values.tls.clientCa.secretName }}
    - --tcp
{{- else }}
    - --ca
    - /etc/preceptor/tls/tls.crt
    - --server-name
    - {{ include "preceptor.directoryHost" . }}
{{- end }}
{{- end }}
initialDelaySeconds: 10
periodSeconds: 10
timeoutSeconds: 10
failureThreshold: 3
{{- end -}}
