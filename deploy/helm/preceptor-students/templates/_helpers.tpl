{{- define "students.name" -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" .Release.Name) -}}
{{- fail (printf "release name: got %q, expected it to start with a letter and to have letters, digits and - only" .Release.Name) -}}
{{- end -}}
{{- .Release.Name -}}
{{- end -}}

{{/* Not app.kubernetes.io/name: KubeRay selects the head by its own value of it. */}}
{{- define "students.podLabels" -}}
app.kubernetes.io/instance: {{ include "students.name" . }}
app.kubernetes.io/part-of: preceptor-students
{{- end -}}

{{- define "students.labels" -}}
{{ include "students.podLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "students.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* The `teacher` of a run. */}}
{{- define "students.teacher" -}}
{{- $teacher := .Values.teacher -}}
{{- $options := dict "token_file" (printf "/etc/preceptor/token/%s" $teacher.tokenSecret.key) -}}
{{- if $teacher.insecure -}}
{{- $_ := set $options "insecure" true -}}
{{- else -}}
{{- $tls := dict "server_name" $teacher.serverName -}}
{{- if $teacher.caSecret.name -}}
{{- $_ := set $tls "ca_file" (printf "/etc/preceptor/ca/%s" $teacher.caSecret.key) -}}
{{- end -}}
{{- if $teacher.certificateSecret.name -}}
{{- $_ := set $tls "certificate_file" "/etc/preceptor/certificate/tls.crt" -}}
{{- $_ := set $tls "key_file" "/etc/preceptor/certificate/tls.key" -}}
{{- end -}}
{{- $_ := set $options "tls" $tls -}}
{{- end -}}
{{- dict "address" $teacher.address "options" (merge $options (deepCopy $teacher.options)) | toYaml -}}
{{- end -}}

{{/* The file that the command reads; takes (dict "root" . "kind" "run" or "fleet" "name" name "job" its values). */}}
{{- define "students.config" -}}
{{- $teacher := include "students.teacher" .root | fromYaml -}}
{{- $own := dict "name" .name "output" .root.Values.storage.mountPath -}}
{{- if eq .kind "run" -}}
{{- $_ := set $own "teacher" $teacher -}}
{{- else -}}
{{- if not (kindIs "map" (.job.config.base | default dict)) -}}
{{- fail (printf "fleets.%s.config.base: got the name of a file, expected its fields" .name) -}}
{{- end -}}
{{- $_ := set $own "address" "http://127.0.0.1:8265" -}}
{{- $_ := set $own "job" (mergeOverwrite (dict "ship_client" false) (deepCopy (.job.config.job | default dict))) -}}
{{- $_ := set $own "base" (mergeOverwrite (deepCopy (.job.config.base | default dict)) (dict "teacher" $teacher)) -}}
{{- end -}}
{{- mergeOverwrite (deepCopy .job.config) $own | toYaml -}}
{{- end -}}

{{/* A run's name carries its config: another config is another job. What comes by a schedule keeps its name. */}}
{{- define "students.jobName" -}}
{{- $name := printf "%s-%s" (include "students.name" .root) .name -}}
{{- $most := 36 -}}
{{- if not .job.schedule -}}
{{- $name = printf "%s-%s" $name (include "students.config" . | sha256sum | trunc 6) -}}
{{- $most = 47 -}}
{{- end -}}
{{- if gt (len $name) $most -}}
{{- fail (printf "%s: got %d characters, expected at most %d; choose a shorter release name" $name (len $name) $most) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{- define "students.podSpec" -}}
automountServiceAccountToken: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- range $field := list "nodeSelector" "tolerations" "affinity" }}
{{- with get $.Values.cluster $field }}
{{ $field }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "students.volumes" -}}
- name: runs
  persistentVolumeClaim: {claimName: {{ .Values.storage.claimName | quote }}}
- name: token
  secret: {secretName: {{ .Values.teacher.tokenSecret.name | quote }}, defaultMode: 0440}
{{- if not .Values.teacher.insecure }}
{{- range $name, $secret := dict "ca" .Values.teacher.caSecret "certificate" .Values.teacher.certificateSecret }}
{{- with $secret.name }}
- name: {{ $name }}
  secret: {secretName: {{ . | quote }}, defaultMode: 0440}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.volumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "students.volumeMounts" -}}
- {name: runs, mountPath: {{ .Values.storage.mountPath | quote }}}
- {name: token, mountPath: /etc/preceptor/token, readOnly: true}
{{- if not .Values.teacher.insecure }}
{{- range $name, $secret := dict "ca" .Values.teacher.caSecret "certificate" .Values.teacher.certificateSecret }}
{{- if $secret.name }}
- {name: {{ $name }}, mountPath: /etc/preceptor/{{ $name }}, readOnly: true}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.volumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "students.container" -}}
image: {{ include "students.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.containerSecurityContext | nindent 2 }}
{{- with .Values.env }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "students.workerResources" -}}
cpu: {{ .cpus | quote }}
memory: {{ .memory | quote }}
{{- if .gpus }}
{{ .gpuResource }}: {{ int64 .gpus | quote }}
{{- end }}
{{- end -}}

{{/* The spec of a RayJob; takes what students.config takes. */}}
{{- define "students.rayJobSpec" -}}
{{- $workers := merge (deepCopy (.job.workers | default dict)) .root.Values.cluster.workers -}}
{{- $command := printf "preceptor %s /etc/preceptor/run/run.yaml --json" (eq .kind "run" | ternary "train" "fleet") -}}
entrypoint: {{ .job.fresh | default false | ternary (printf "%s --fresh" $command) $command }}
# The operator submits it: no pod for that, and no wider NetworkPolicy.
submissionMode: HTTPMode
shutdownAfterJobFinishes: true
ttlSecondsAfterFinished: {{ int64 .root.Values.ttlSecondsAfterFinished }}
backoffLimit: {{ int64 (.job.backoffLimit | default 0) }}
{{- with .job.activeDeadlineSeconds }}
activeDeadlineSeconds: {{ int64 . }}
{{- end }}
{{- if .job.suspend }}
suspend: true
{{- end }}
rayClusterSpec:
  rayVersion: {{ .root.Values.rayVersion | quote }}
  authOptions:
    mode: {{ .root.Values.rayAuth.enabled | ternary "token" "disabled" }}
    {{- with .root.Values.rayAuth.secretName }}
    secretName: {{ . | quote }}
    {{- end }}
  headGroupSpec:
    rayStartParams:
      num-cpus: "0"  # drivers only
    template:
      metadata:
        labels:
          {{- include "students.podLabels" .root | nindent 10 }}
      spec:
        {{- include "students.podSpec" .root | nindent 8 }}
        volumes:
          {{- include "students.volumes" .root | nindent 10 }}
          - name: run
            configMap: {name: {{ include "students.jobName" . }}}
        containers:
          - name: ray-head
            {{- include "students.container" .root | nindent 12 }}
            volumeMounts:
              {{- include "students.volumeMounts" .root | nindent 14 }}
              - {name: run, mountPath: /etc/preceptor/run, readOnly: true}
            ports:
              - {name: gcs-server, containerPort: 6379}
              - {name: dashboard, containerPort: 8265}
            resources:
              {{- toYaml .root.Values.cluster.head.resources | nindent 14 }}
  workerGroupSpecs:
    - groupName: students
      replicas: {{ int64 $workers.replicas }}
      minReplicas: {{ int64 $workers.replicas }}
      maxReplicas: {{ int64 $workers.replicas }}
      rayStartParams: {}
      template:
        metadata:
          labels:
            {{- include "students.podLabels" .root | nindent 12 }}
        spec:
          {{- include "students.podSpec" .root | nindent 10 }}
          volumes:
            {{- include "students.volumes" .root | nindent 12 }}
          containers:
            - name: ray-worker
              {{- include "students.container" .root | nindent 14 }}
              volumeMounts:
                {{- include "students.volumeMounts" .root | nindent 16 }}
              resources:
                requests:
                  {{- include "students.workerResources" $workers | nindent 18 }}
                limits:
                  {{- include "students.workerResources" $workers | nindent 18 }}
{{- end -}}
