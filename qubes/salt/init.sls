{#- For dom0: what `proxyfw qubes-policy` prints, as a Salt state. Put this folder at /srv/salt/proxyfw and proxyfw.top
    at /srv/salt/proxyfw.top, fill in the three lists, and then
      sudo qubesctl top.enable proxyfw
      sudo qubesctl state.apply
-#}
{%- set netvm = 'sys-proxyfw' %}
{#- The qubes that are to be behind it. They must exist. -#}
{%- set clients = ['programming', 'studying'] %}
{#- The tags of proxyfw's configuration: research for a client "tag:research". -#}
{%- set tags = [] %}
{#- Whether proxyfw is installed in the template of the netvm, and not in the netvm itself. -#}
{%- set in_template = True -%}

/etc/qubes/policy.d/30-proxyfw.policy:
  file.managed:
    - source: salt://proxyfw/30-proxyfw.policy.jinja
    - template: jinja
    - user: root
    - group: qubes
    - mode: '0664'
    - context:
        netvm: {{ netvm }}
        tags: {{ tags | tojson }}
{% if in_template %}
{{ netvm }}-runs-proxyfw:
  qvm.service:
    - name: {{ netvm }}
    - enable:
      - proxyfw
{% endif %}
{%- for client in clients %}
{{ client }}-is-known-to-{{ netvm }}:
  qvm.tags:
    - name: {{ client }}
    - add:
      - proxyfw

{{ client }}-is-behind-{{ netvm }}:
  qvm.prefs:
    - name: {{ client }}
    - netvm: {{ netvm }}
{% endfor %}
